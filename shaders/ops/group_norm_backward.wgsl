// group_norm_backward: out = r·(g' − mean(g') − n·mean(g'·n)), the gradient of the input of group_norm
//
// With n = (x − mean)·r the normalised input, r = 1/√(variance + ε), z = n·gain + offset, and g' = g·gain, times the slope
// of z·σ(z) where silu is 1. x, g and out [batch, channels, places], gain and offset [channels]; row-major, without gaps.
//
// A group of invocations takes one group of channels and passes over it four times: mean, variance, both means of the
// gradient, result; nothing of the forward pass is kept. Sums are in f32. Limits: each tensor below 2³² elements.

struct Sizes { slices: u32, channels: u32, places: u32, groups: u32, silu: u32, eps: f32 }
@group(0) @binding(0) var<storage, read_write> x: array<{{ element }}>;
@group(0) @binding(1) var<storage, read_write> gain: array<{{ element }}>;
@group(0) @binding(2) var<storage, read_write> offset: array<{{ element }}>;
@group(0) @binding(3) var<storage, read_write> g: array<{{ element }}>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ element }}>;
@group(0) @binding(5) var<storage, read_write> sizes: Sizes;

const LANES = 256u;
alias Sum = vec2<f32>;

// Of a place: the normalised input and g'.
fn place(at: u32, mean: f32, r: f32) -> vec2<f32> {
    let channel = at / sizes.places % sizes.channels;
    let normal = (f32(x[at]) - mean) * r;
    let z = normal * f32(gain[channel]) + f32(offset[channel]);
    let s = 1.0 / (1.0 + exp(-z));
    let slope = select(1.0, s * (1.0 + z * (1.0 - s)), sizes.silu == 1u);
    return vec2(normal, f32(g[at]) * slope * f32(gain[channel]));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let slice = group.y * groups.x + group.x; // in rows of a grid, because one axis of it ends at 65,535
    if slice >= sizes.slices { return; }
    let n = sizes.channels / sizes.groups * sizes.places;
    let first = slice * n;
    var sum = vec2(0.0);
    for (var i = lane; i < n; i += LANES) { sum.x += f32(x[first + i]); }
    let mean = total(lane, sum).x / f32(n);
    sum = vec2(0.0);
    for (var i = lane; i < n; i += LANES) {
        let centred = f32(x[first + i]) - mean;
        sum.x += centred * centred;
    }
    let r = inverseSqrt(total(lane, sum).x / f32(n) + sizes.eps);
    sum = vec2(0.0);
    for (var i = lane; i < n; i += LANES) {
        let at = place(first + i, mean, r);
        sum += vec2(at.y, at.x * at.y);
    }
    let means = total(lane, sum) / f32(n);
    for (var i = lane; i < n; i += LANES) {
        let at = place(first + i, mean, r);
        out[first + i] = {{ element }}(r * (at.y - means.x - at.x * means.y));
    }
}
