// The sum of what all invocations of a group bring. The shader says how many they are, LANES, and what a Sum is.

var<workgroup> sums: array<Sum, LANES>;

fn total(lane: u32, mine: Sum) -> Sum {
    workgroupBarrier();
    sums[lane] = mine;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half { sums[lane] += sums[lane + half]; }
        workgroupBarrier();
    }
    return sums[0];
}
