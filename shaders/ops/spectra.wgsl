// spectra: the singular values S of U · S · Vᵀ = scale · up · down, from the Gram matrices of both, for many layers at once
//
// grams [layers, 2, widest, widest]: upᵀ·up, then down·downᵀ, zeros around them. values [layers, widest], falling.
// coefficients [layers, 2, widest, widest]: writesᵀ, then readsᵀ, with U = up · writes and V = downᵀ · reads.
//
// A group takes a layer. R with Rᵀ·R = Gram of either side, by Cholesky with pivots, leaves the core R_up·R_downᵀ, whose
// columns Jacobi's rotations turn until they are orthogonal (Hestenes 1958): then they are X·S. In f32, and Gram matrices
// are squares: what is below a thousandth of the strongest is rounding, and told as 0.
// Limits: widest up to 64, below 2³² numbers in all. Mesa's software Vulkan ends loops after 65,535 turns of all of them.

struct Table { widest: u32, scales: array<f32> }
@group(0) @binding(0) var<storage, read_write> grams: array<f32>;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;
@group(0) @binding(2) var<storage, read_write> coefficients: array<f32>;
@group(0) @binding(3) var<storage, read_write> work: array<f32>; // [layers, 3 · widest + 1, widest in fours]: R, R, core, norms
@group(0) @binding(4) var<storage, read_write> table: Table;

const LANES = 128u;
const SWEEPS = 9u;
const WIDEST = 64u;
var<workgroup> taken: array<u32, 2 * WIDEST>; // directions of either side that have been pivots
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
fn set_four(row: u32, i: u32, values: vec4<f32>) {
    let first = at(2u, row, i);
    work[first] = values.x;
    work[first + 1u] = values.y;
    work[first + 2u] = values.z;
    work[first + 3u] = values.w;
}
fn rotate(p: u32, q: u32) {
    var dots = vec3(0.0);
    for (var i = 0u; i < fours(); i += 4u) {
        let x = four(p, i);
        let y = four(q, i);
        dots += vec3(dot(x, x), dot(y, y), dot(x, y));
    }
    if abs(dots.z) <= 1e-7 * sqrt(dots.x) * sqrt(dots.y) { return; }
    let zeta = (dots.y - dots.x) / (2.0 * dots.z);
    let t = select(-1.0, 1.0, zeta >= 0.0) / (abs(zeta) + sqrt(1.0 + zeta * zeta));
    let c = 1.0 / sqrt(1.0 + t * t);
    for (var i = 0u; i < fours(); i += 4u) {
        let x = c * (four(p, i) - t * four(q, i));
        let y = c * (four(q, i) + t * four(p, i));
        set_four(p, i, x);
        set_four(q, i, y);
    }
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
    for (var e = lane; e < 2u * WIDEST; e += LANES) { taken[e] = 0u; }
    for (var e = lane; e < w; e += LANES) { values[index * w + e] = 0.0; }
    let side = lane / (LANES / 2u);
    for (var k = 0u; k < w; k++) {
        workgroupBarrier();
        storageBarrier();
        var pivot = 0u;
        var largest = -1.0;
        for (var i = 0u; i < w; i++) {
            let left = work[at(side, i, i)];
            if taken[side * WIDEST + i] == 0u && !(left <= largest) {
                pivot = i;
                largest = left;
            }
        }
        // What is left of a direction that the others hold already is rounding.
        let root = select(0.0, 1.0 / sqrt(largest), !(largest <= 1e-6));
        workgroupBarrier();
        storageBarrier();
        for (var j = lane % (LANES / 2u); j < w; j += LANES / 2u) { work[at(side, pivot, j)] *= root; }
        if lane % (LANES / 2u) == 0u { taken[side * WIDEST + pivot] = 1u; }
        workgroupBarrier();
        storageBarrier();
        for (var e = lane % (LANES / 2u); e < w * w; e += LANES / 2u) {
            let by = work[at(side, pivot, e / w)] * work[at(side, pivot, e % w)];
            if taken[side * WIDEST + e / w] == 0u { work[at(side, e / w, e % w)] -= by; }
        }
    }
    storageBarrier();
    for (var e = lane; e < w * w; e += LANES) {
        var sum = 0.0;
        for (var k = 0u; k < w; k++) { sum += work[at(0u, e % w, k)] * work[at(1u, e / w, k)] * norm(0u, k) * norm(1u, k); }
        work[at(2u, e / w, e % w)] = sum;
    }
    // Everybody meets everybody once in a sweep, as in a round of chess: one keeps its seat, the others move on.
    let moving = w - 1u + w % 2u;
    for (var round = 0u; round < SWEEPS * moving; round++) {
        storageBarrier();
        for (var seat = lane; seat <= moving / 2u; seat += LANES) {
            let p = select((round + seat) % moving, moving, seat == 0u);
            let q = (round + moving - seat) % moving;
            if max(p, q) < w { rotate(p, q); }
        }
    }
    storageBarrier();
    for (var k = lane; k < w; k += LANES) {
        var square = 0.0;
        for (var i = 0u; i < fours(); i += 4u) { square += dot(four(k, i), four(k, i)); }
        work[at(3u, 0u, k)] = sqrt(square);
    }
    storageBarrier();
    for (var k = lane; k < w; k += LANES) {
        let sigma = work[at(3u, 0u, k)];
        var place = 0u;
        var largest = sigma;
        for (var j = 0u; j < w; j++) {
            let other = work[at(3u, 0u, j)];
            if other > sigma || (other == sigma && j < k) { place++; }
            largest = max(largest, other);
        }
        let strong = !(sigma <= 1e-3 * largest); // what is no number stays none
        values[index * w + place] = select(0.0, abs(table.scales[index]) * sigma, strong);
        if !strong { continue; }
        let writes = first + place * w;
        let reads = writes + w * w;
        for (var a = 0u; a < w; a++) {
            var sum = 0.0;
            for (var i = 0u; i < w; i++) { sum += work[at(0u, i, a)] * work[at(2u, k, i)]; }
            coefficients[reads + a] = norm(0u, a) * sum / (sigma * sigma);
        }
        for (var a = 0u; a < w; a++) {
            var sum = 0.0;
            for (var b = 0u; b < w; b++) { sum += grams[first + (w + a) * w + b] * coefficients[reads + b]; }
            coefficients[writes + a] = sign(table.scales[index]) * sum / sigma;
        }
    }
}
