// low_rank: h = x · downᵀ, out = y + (s ∘ h) · upᵀ
//
// x [rows, inner], y and out [rows, columns], down [rank, inner], up [columns, rank], h [rows, rank]; row-major, no gaps.
// The factors of all adapters lie one behind the other along rank, and s repeats the strength of each over its ranks.
// Where turned is 1, down is [inner, rank] and up [rank, columns], and y adds nothing: so runs the gradient of x.
//
// A group computes 16 rows × 256 columns of out, an invocation one element of each 16×16 tile in it: first h into
// workgroup memory, then h · upᵀ tile by tile. Wider spans would compute h less often, but leave a large GPU idle.
// Limits: any rank, in passes of 64, each of which rounds to the element type; each tensor below 2³² elements.

struct Sizes { rows: u32, columns: u32, inner: u32, rank: u32, turned: u32, s: array<f32> }
@group(0) @binding(0) var<storage, read_write> x: array<{{ element }}>;
@group(0) @binding(1) var<storage, read_write> y: array<{{ element }}>;
@group(0) @binding(2) var<storage, read_write> down: array<{{ element }}>;
@group(0) @binding(3) var<storage, read_write> up: array<{{ element }}>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ element }}>;
@group(0) @binding(5) var<storage, read_write> h: array<{{ element }}>;
@group(0) @binding(6) var<storage, read_write> sizes: Sizes;

const TILE = 16u;
const SPAN = 256u; // columns
const PASS = 64u; // ranks

// One column more than used, so that the rows of a tile start in different memory banks.
var<workgroup> h_tile: array<array<f32, PASS + 1>, TILE>;
var<workgroup> x_tile: array<array<f32, TILE + 1>, TILE>;
var<workgroup> factor: array<array<f32, TILE + 1>, TILE>;

// Zero past the edges, where it adds nothing.
fn x_at(row: u32, i: u32) -> f32 {
    if row < sizes.rows && i < sizes.inner { return f32(x[row * sizes.inner + i]); } else { return 0.0; }
}
fn down_at(r: u32, i: u32) -> f32 {
    if r >= sizes.rank || i >= sizes.inner { return 0.0; }
    return f32(down[select(r * sizes.inner + i, i * sizes.rank + r, sizes.turned == 1u)]);
}
fn scaled_up_at(column: u32, r: u32) -> f32 {
    if column >= sizes.columns || r >= sizes.rank { return 0.0; }
    return sizes.s[r] * f32(up[select(column * sizes.rank + r, r * sizes.columns + column, sizes.turned == 1u)]);
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    let spans = (sizes.columns + SPAN - 1u) / SPAN;
    let tile = group.y * groups.x + group.x; // in rows of a grid, because one axis of it ends at 65,535
    let row = tile / spans * TILE + local.y;
    let first = tile % spans * SPAN;
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
        for (var column = first + local.x; column - local.x < min(first + SPAN, sizes.columns); column += TILE) {
            var sum = 0.0;
            for (var k = 0u; k < ranks; k += TILE) {
                factor[local.y][local.x] = scaled_up_at(column - local.x + local.y, pass_start + k + local.x);
                workgroupBarrier();
                for (var j = 0u; j < TILE; j++) { sum += h_tile[local.y][k + j] * factor[local.x][j]; }
                workgroupBarrier();
            }
            let at = row * sizes.columns + column;
            if row < sizes.rows && column < sizes.columns {
                if pass_start > 0u { sum += f32(out[at]); } else if sizes.turned == 0u { sum += f32(y[at]); }
                out[at] = {{ element }}(sum);
            }
        }
    }
}
