// overlap: what two adapters share in a layer, for many layers and pairs at once: with P = UᵢᵀUⱼ and Q = VᵢᵀVⱼ
// Σ σ·σ'·P·Q = ⟨ΔWᵢ, ΔWⱼ⟩, Σ P² (write sides), Σ Q² (read sides), Σ (σ·Q·σ')² = ‖ΔWᵢ ΔWⱼᵀ‖²
//
// grams [pairs, 2, widest, widest]: upᵢᵀ·upⱼ, then downᵢ·downⱼᵀ. values and coefficients are those of spectra: a row of
// the table says which of theirs are i and j, and P = writesᵢᵀ · gram · writesⱼ. out [pairs, 4].
//
// A group takes a pair and goes through the directions of i, its lanes through those of j.
// Limits: widest up to 64; below 2³² numbers in all.

struct Pair { i: u32, j: u32 }
struct Table { widest: u32, pairs: array<Pair> }
@group(0) @binding(0) var<storage, read_write> grams: array<f32>;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;
@group(0) @binding(2) var<storage, read_write> coefficients: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> table: Table;

const LANES = 64u;

var<workgroup> half: array<vec2<f32>, 64>; // of a direction of i: its coefficients · gram, of either side
var<workgroup> sums: array<vec4<f32>, LANES>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = group.y * groups.x + group.x; // in rows of a grid, because one axis of it ends at 65,535
    if index >= arrayLength(&table.pairs) { return; }
    let w = table.widest;
    let i = table.pairs[index].i;
    let j = table.pairs[index].j;
    var sum = vec4(0.0);
    for (var k = 0u; k < w; k++) {
        workgroupBarrier();
        for (var b = lane; b < w; b += LANES) {
            var both = vec2(0.0);
            for (var a = 0u; a < w; a++) {
                let write = coefficients[(2u * i * w + k) * w + a] * grams[(2u * index * w + a) * w + b];
                let read = coefficients[((2u * i + 1u) * w + k) * w + a] * grams[((2u * index + 1u) * w + a) * w + b];
                both += vec2(write, read);
            }
            half[b] = both;
        }
        workgroupBarrier();
        for (var l = lane; l < w; l += LANES) {
            var shared_by = vec2(0.0);
            for (var b = 0u; b < w; b++) {
                let write = coefficients[(2u * j * w + l) * w + b];
                let read = coefficients[((2u * j + 1u) * w + l) * w + b];
                shared_by += half[b] * vec2(write, read);
            }
            let pushed = values[i * w + k] * values[j * w + l] * shared_by.y;
            sum += vec4(pushed * shared_by.x, shared_by * shared_by, pushed * pushed);
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if lane == 0u {
        for (var other = 1u; other < LANES; other++) { sum += sums[other]; }
        for (var part = 0u; part < 4u; part++) { out[index * 4u + part] = sum[part]; }
    }
}
