// group_norm: z = (x − mean) / √(variance + ε) · gain + offset over each group of channels; out = z, or z·σ(z)
//
// x and out [batch, channels, places], gain and offset [channels]; row-major, without gaps. Groups of channels lie one
// behind the other, so each is a run of numbers.
//
// A group of invocations takes one group of channels and passes over it three times: mean, variance, result. Sums are
// in f32, whatever the element type. Limits: each tensor below 2³² elements.

struct Sizes { slices: u32, channels: u32, places: u32, groups: u32, silu: u32, eps: f32 }
@group(0) @binding(0) var<storage, read_write> x: array<{{ element }}>;
@group(0) @binding(1) var<storage, read_write> gain: array<{{ element }}>;
@group(0) @binding(2) var<storage, read_write> offset: array<{{ element }}>;
@group(0) @binding(3) var<storage, read_write> out: array<{{ element }}>;
@group(0) @binding(4) var<storage, read_write> sizes: Sizes;

const LANES = 256u;
alias Sum = f32;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let slice = group.y * groups.x + group.x; // in rows of a grid, because one axis of it ends at 65,535
    if slice >= sizes.slices { return; }
    let n = sizes.channels / sizes.groups * sizes.places;
    let first = slice * n;
    var sum = 0.0;
    for (var i = lane; i < n; i += LANES) { sum += f32(x[first + i]); }
    let mean = total(lane, sum) / f32(n);
    sum = 0.0;
    for (var i = lane; i < n; i += LANES) {
        let centred = f32(x[first + i]) - mean;
        sum += centred * centred;
    }
    let r = inverseSqrt(total(lane, sum) / f32(n) + sizes.eps);
    for (var i = lane; i < n; i += LANES) {
        let channel = (first + i) / sizes.places % sizes.channels;
        let z = (f32(x[first + i]) - mean) * r * f32(gain[channel]) + f32(offset[channel]);
        out[first + i] = {{ element }}(select(z, z / (1.0 + exp(-z)), sizes.silu == 1u));
    }
}
