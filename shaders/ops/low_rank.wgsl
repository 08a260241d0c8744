// low_rank: h = x · downᵀ, out = y + s · h · upᵀ
//
// x [rows, inner], y and out [rows, columns], down [rank, inner], up [columns, rank], h [rows, rank]; row-major, no gaps.
//
// A group computes 16 rows × 256 columns of out, an invocation one element of each 16×16 tile in it. First
// h goes to workgroup memory (and out, for the backward pass), then h · upᵀ is added tile by tile. Wider spans of columns
// would compute h less often, but leave a large GPU idle where rows are few.
// Limits: any rank, in passes of 64, each of which rounds to the element type; each tensor below 2³² elements.

struct Sizes { rows: u32, columns: u32, inner: u32, rank: u32, scale: f32 }
@group(0) @binding(0) var<storage, read_write> x: array<{{ element }}>;
@group(0) @binding(1) var<storage, read_write> y: array<{{ element }}>;
@group(0) @binding(2) var<storage, read_write> down: array<{{ element }}>;
@group(0) @binding(3) var<storage, read_write> up: array<{{ element }}>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ element }}>;
@group(0) @binding(5) var<storage, read_write> h: array<{{ element }}>;
@group(0) @binding(6) var<storage, read_write> sizes: Sizes;

const TILE = 16u;
const SPAN = 256u; // of columns
const PASS = 64u; // of ranks

// One column more than used, so that the rows of a tile start in different memory banks.
var<workgroup> h_tile: array<array<f32, PASS + 1>, TILE>;
var<workgroup> x_tile: array<array<f32, TILE + 1>, TILE>;
var<workgroup> factor: array<array<f32, TILE + 1>, TILE>;

// Zero past the edges, where it adds nothing.
fn x_at(row: u32, i: u32) -> f32 {
    if row < sizes.rows && i < sizes.inner { return f32(x[row * sizes.inner + i]); } else { return 0.0; }
}
fn down_at(r: u32, i: u32) -> f32 {
    if r < sizes.rank && i < sizes.inner { return f32(down[r * sizes.inner + i]); } else { return 0.0; }
}
fn up_at(column: u32, r: u32) -> f32 {
    if column < sizes.columns && r < sizes.rank { return f32(up[column * sizes.rank + r]); } else { return 0.0; }
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    // Groups fill rows of a grid, because one axis of it ends at 65,535.
    let tile = group.y * groups.x + group.x;
    let spans = (sizes.columns + SPAN - 1u) / SPAN;
    let row = tile / spans * TILE + local.y;
    let first = tile % spans * SPAN;
    let end = min(first + SPAN, sizes.columns);

    for (var pass_start = 0u; pass_start < sizes.rank; pass_start += PASS) {
        let ranks = min(PASS, sizes.rank - pass_start);
        for (var k = 0u; k < ranks; k += TILE) {
            var sum = 0.0;
            for (var i = 0u; i < sizes.inner; i += TILE) {
                x_tile[local.y][local.x] = x_at(row, i + local.x);
                factor[local.y][local.x] = down_at(pass_start + k + local.y, i + local.x);
                workgroupBarrier();
                for (var j = 0u; j < TILE; j++) { sum += x_tile[local.y][j] * factor[local.x][j]; }
                workgroupBarrier();
            }
            h_tile[local.y][k + local.x] = sum;
            let r = pass_start + k + local.x;
            if first == 0u && row < sizes.rows && r < sizes.rank { h[row * sizes.rank + r] = {{ element }}(sum); }
        }
        for (var start = first; start < end; start += TILE) {
            var sum = 0.0;
            for (var k = 0u; k < ranks; k += TILE) {
                factor[local.y][local.x] = up_at(start + local.y, pass_start + k + local.x);
                workgroupBarrier();
                for (var j = 0u; j < TILE; j++) { sum += h_tile[local.y][k + j] * factor[local.x][j]; }
                workgroupBarrier();
            }
            if row < sizes.rows && start + local.x < sizes.columns {
                let at = row * sizes.columns + start + local.x;
                let before = select(f32(out[at]), f32(y[at]), pass_start == 0u);
                out[at] = {{ element }}(before + sizes.scale * sum);
            }
        }
    }
}
