// R with Rᵀ·R = Gram of directions of length 1, by Cholesky with pivots: both sides [widest, widest], each in its place
//
// Half of a group takes a side, an invocation every 64th number of it. Rows are in the pivots' own places: R is no triangle.

var<workgroup> taken: array<u32, 2 * WIDEST>; // directions of either side that have been pivots

fn triangles(lane: u32) {
    let w = table.widest;
    for (var e = lane; e < 2u * WIDEST; e += LANES) { taken[e] = 0u; }
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
}
