// gram: out = A · Bᵀ over the long side of thin factors, for many pairs of them at once
//
// factors holds them row-major where the table says: a write side [n, rank], or where turned is 1 a read side [rank, n].
// out [pairs, widest, widest]: inner products of the directions of A (rows) and of B (columns), zeros around them.
//
// A group computes a 16×16 tile of one product, an invocation one element, reading 16 places of both at a time into
// workgroup memory. Limits: below 2³² numbers in all.

struct Pair { a: u32, b: u32, a_rank: u32, b_rank: u32, n: u32, turned: u32 }
struct Table { widest: u32, pairs: array<Pair> }
@group(0) @binding(0) var<storage, read_write> factors: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read_write> table: Table;

const TILE = 16u;

// One column more than used, so that the rows of a tile start in different memory banks.
var<workgroup> a_tile: array<array<f32, TILE + 1>, TILE>;
var<workgroup> b_tile: array<array<f32, TILE + 1>, TILE>;

// Direction i at place x; zero past the edges, where it adds nothing.
fn factor(first: u32, rank: u32, n: u32, turned: bool, i: u32, x: u32) -> f32 {
    if i >= rank || x >= n { return 0.0; }
    return factors[first + select(x * rank + i, i * n + x, turned)];
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    let across = (table.widest + TILE - 1u) / TILE;
    let tile = group.y * groups.x + group.x; // in rows of a grid, because one axis of it ends at 65,535
    let index = tile / (across * across);
    if index >= arrayLength(&table.pairs) { return; }
    let pair = table.pairs[index];
    let turned = pair.turned == 1u;
    let i = tile / across % across * TILE;
    let j = tile % across * TILE;
    // Neighbours read neighbours: along the long side, or along rank.
    let d = select(local.x, local.y, turned);
    let p = select(local.y, local.x, turned);

    var sum = 0.0;
    for (var x = 0u; x < pair.n; x += TILE) {
        a_tile[p][d] = factor(pair.a, pair.a_rank, pair.n, turned, i + d, x + p);
        b_tile[p][d] = factor(pair.b, pair.b_rank, pair.n, turned, j + d, x + p);
        workgroupBarrier();
        var part = 0.0; // sums of sums round less
        for (var k = 0u; k < TILE; k++) { part += a_tile[k][local.y] * b_tile[k][local.x]; }
        sum += part;
        workgroupBarrier();
    }
    let row = i + local.y;
    let column = j + local.x;
    if row < table.widest && column < table.widest { out[(index * table.widest + row) * table.widest + column] = sum; }
}
