// outer: out = Σ over rows of a ⊗ (s ∘ h)
//
// a [rows, columns], h [rows, rank]; out [columns, rank], or [rank, columns] where turned is 1; row-major, no gaps. With a
// the gradient that comes in and h what went up, it is the gradient of a write side; of a read side, turned.
//
// A group computes a 16×16 tile of out, an invocation one element, reading 16 rows of both at a time into workgroup
// memory. Sums are in f32, rounded once. Limits: each tensor below 2³² elements.

struct Sizes { rows: u32, columns: u32, rank: u32, turned: u32, s: array<f32> }
@group(0) @binding(0) var<storage, read_write> a: array<{{ element }}>;
@group(0) @binding(1) var<storage, read_write> h: array<{{ element }}>;
@group(0) @binding(2) var<storage, read_write> out: array<{{ element }}>;
@group(0) @binding(3) var<storage, read_write> sizes: Sizes;

const TILE = 16u;

var<workgroup> a_tile: array<array<f32, TILE>, TILE>;
var<workgroup> h_tile: array<array<f32, TILE>, TILE>;

// Zero past the edges, where it adds nothing.
fn a_at(row: u32, column: u32) -> f32 {
    if row < sizes.rows && column < sizes.columns { return f32(a[row * sizes.columns + column]); } else { return 0.0; }
}
fn h_at(row: u32, r: u32) -> f32 {
    if row < sizes.rows && r < sizes.rank { return f32(h[row * sizes.rank + r]); } else { return 0.0; }
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    // Groups fill rows of a grid, because one axis of it ends at 65,535.
    let tile = group.y * groups.x + group.x;
    let across = (sizes.rank + TILE - 1u) / TILE;
    let first_column = tile / across * TILE;
    let first_r = tile % across * TILE;
    // Neighbours write neighbours: along rank, or along columns where out is turned.
    let column = first_column + select(local.y, local.x, sizes.turned == 1u);
    let r = first_r + select(local.x, local.y, sizes.turned == 1u);

    var sum = 0.0;
    for (var row = 0u; row < sizes.rows; row += TILE) {
        a_tile[local.y][local.x] = a_at(row + local.y, first_column + local.x);
        h_tile[local.y][local.x] = h_at(row + local.y, first_r + local.x);
        workgroupBarrier();
        for (var k = 0u; k < TILE; k++) { sum += a_tile[k][column - first_column] * h_tile[k][r - first_r]; }
        workgroupBarrier();
    }
    if column < sizes.columns && r < sizes.rank {
        let at = select(column * sizes.rank + r, r * sizes.columns + column, sizes.turned == 1u);
        out[at] = {{ element }}(sizes.s[r] * sum);
    }
}
