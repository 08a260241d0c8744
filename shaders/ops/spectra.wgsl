// spectra: the singular values S of U · S · Vᵀ = scale · up · down, from the Gram matrices of both, for many layers at once
//
// grams [layers, 2, widest, widest]: upᵀ·up, then down·downᵀ, zeros around them. values [layers, widest], falling.
// coefficients [layers, 2, widest, widest]: writesᵀ, then readsᵀ, with U = up · writes and V = downᵀ · reads.
//
// A group takes a layer. spectra/triangles.wgsl makes R with Rᵀ·R = Gram of either side, the core is R_up·R_downᵀ,
// spectra/rotations.wgsl turns its columns into X·S, and spectra/directions.wgsl sorts them. In f32, and Gram matrices are
// squares: what is below a thousandth of the strongest is rounding, and told as 0.
// Limits: widest up to 64, below 2³² numbers in all. Mesa's software Vulkan ends loops after 65,535 turns of all of them.

struct Table { widest: u32, scales: array<f32> }
@group(0) @binding(0) var<storage, read_write> grams: array<f32>;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;
@group(0) @binding(2) var<storage, read_write> coefficients: array<f32>;
@group(0) @binding(3) var<storage, read_write> work: array<f32>; // [layers, 3 · widest + 1, widest in fours]: R, R, core, norms
@group(0) @binding(4) var<storage, read_write> table: Table;

const LANES = 128u;
const WIDEST = 64u;
var<private> index: u32;

fn fours() -> u32 { return (table.widest + 3u) / 4u * 4u; }
fn at(part: u32, row: u32, column: u32) -> u32 {
    return ((index * 3u + part) * table.widest + index + row) * fours() + column;
}
fn four(row: u32, i: u32) -> vec4<f32> { // of a column of the core
    let first = at(2u, row, i);
    return vec4(work[first], work[first + 1u], work[first + 2u], work[first + 3u]);
}
fn norm(side: u32, i: u32) -> f32 { // of a direction
    return sqrt(grams[((index * 2u + side) * table.widest + i) * table.widest + i]);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    index = group.y * groups.x + group.x; // in rows of a grid, because one axis of it ends at 65,535
    if index >= arrayLength(&table.scales) { return; }
    let w = table.widest;
    let first = 2u * index * w * w;
    for (var e = lane; e < 2u * w * w; e += LANES) {
        // Directions of length 1: how length is shared between the sides is nobody's.
        let size = norm(e / (w * w), e / w % w) * norm(e / (w * w), e % w);
        work[at(e / (w * w), e / w % w, e % w)] = select(grams[first + e] / size, 0.0, size == 0.0);
        coefficients[first + e] = 0.0;
    }
    for (var e = lane; e < w * 4u; e += LANES) { work[at(2u, e / 4u, fours() - 4u + e % 4u)] = 0.0; }
    for (var e = lane; e < w; e += LANES) { values[index * w + e] = 0.0; }
    triangles(lane);
    storageBarrier();
    for (var e = lane; e < w * w; e += LANES) {
        var sum = 0.0;
        for (var k = 0u; k < w; k++) { sum += work[at(0u, e % w, k)] * work[at(1u, e / w, k)] * norm(0u, k) * norm(1u, k); }
        work[at(2u, e / w, e % w)] = sum;
    }
    rotations(lane);
    storageBarrier();
    for (var k = lane; k < w; k += LANES) {
        var square = 0.0;
        for (var i = 0u; i < fours(); i += 4u) { square += dot(four(k, i), four(k, i)); }
        work[at(3u, 0u, k)] = sqrt(square);
    }
    storageBarrier();
    directions(lane);
}
