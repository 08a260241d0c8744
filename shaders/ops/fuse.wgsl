// fuse: W' = W + left · diag(scales) · right
//
// weight and out [rows, columns], left [rows, rank], right [rank, columns], scales [rank]; row-major, without gaps.
// The factors of all adapters lie side by side along rank, so one pass over the weight adds all of them.
//
// A group computes a 16×16 tile of out, an invocation one element. Factors pass through workgroup memory 16 ranks at a
// time, so each is read once by a tile rather than once by an element. Products are added in f32 and rounded once.
// Limits: any rank; each tensor below 2³² elements.

struct Sizes { rows: u32, columns: u32, rank: u32 }

@group(0) @binding(0) var<storage, read_write> weight: array<{{ weight }}>;
@group(0) @binding(1) var<storage, read_write> left: array<f32>;
@group(0) @binding(2) var<storage, read_write> right: array<f32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ out }}>;
@group(0) @binding(5) var<storage, read_write> sizes: Sizes;

const TILE = 16u;

var<workgroup> scaled_left: array<array<f32, TILE>, TILE>;
var<workgroup> right_tile: array<array<f32, TILE>, TILE>;

// Zero past the edges, where it adds nothing.
fn scaled_left_at(row: u32, r: u32) -> f32 {
    if row < sizes.rows && r < sizes.rank {
        return left[row * sizes.rank + r] * scales[r];
    }
    return 0.0;
}

fn right_at(r: u32, column: u32) -> f32 {
    if r < sizes.rank && column < sizes.columns {
        return right[r * sizes.columns + column];
    }
    return 0.0;
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    // Groups fill rows of a grid, because one axis of it ends at 65,535.
    let tile = group.y * groups.x + group.x;
    let across = (sizes.columns + TILE - 1u) / TILE;
    let row = tile / across * TILE + local.y;
    let column = tile % across * TILE + local.x;

    var sum = 0.0;
    for (var r = 0u; r < sizes.rank; r += TILE) {
        scaled_left[local.y][local.x] = scaled_left_at(row, r + local.x);
        right_tile[local.y][local.x] = right_at(r + local.y, column);
        workgroupBarrier();
        for (var k = 0u; k < TILE; k++) {
            sum += scaled_left[local.y][k] * right_tile[k][local.x];
        }
        workgroupBarrier();
    }

    if row < sizes.rows && column < sizes.columns {
        let at = row * sizes.columns + column;
        out[at] = {{ out }}(f32(weight[at]) + sum);
    }
}
