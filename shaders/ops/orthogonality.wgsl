// orthogonality: loss = ‖QᵀQ − I‖² of each matrix of a group, and excess = QᵀQ − I, from which the gradient is 4·Q·excess
//
// q [matrices, n, rank], loss [matrices], excess [matrices, rank, rank]; row-major, without gaps.
//
// A group of invocations takes one matrix, an invocation every 256th product of two of its columns. Sums are in f32.
// Limits: each tensor below 2³² elements.

struct Sizes { matrices: u32, n: u32, rank: u32 }
@group(0) @binding(0) var<storage, read_write> q: array<f32>;
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;
@group(0) @binding(2) var<storage, read_write> excess: array<f32>;
@group(0) @binding(3) var<storage, read_write> sizes: Sizes;

const LANES = 256u;
alias Sum = f32;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let matrix = group.y * groups.x + group.x; // in rows of a grid, because one axis of it ends at 65,535
    if matrix >= sizes.matrices { return; }
    let r = sizes.rank;
    let first = matrix * sizes.n * r;
    var squares = 0.0;
    for (var e = lane; e < r * r; e += LANES) {
        var sum = 0.0;
        for (var k = 0u; k < sizes.n; k++) { sum += q[first + k * r + e / r] * q[first + k * r + e % r]; }
        let over = sum - select(0.0, 1.0, e / r == e % r);
        excess[matrix * r * r + e] = over;
        squares += over * over;
    }
    let sum = total(lane, squares);
    if lane == 0u { loss[matrix] = sum; }
}
