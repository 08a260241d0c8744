// Values in falling order, and the coefficients of their directions, from the core X·S and the lengths of its columns
//
// An invocation takes a direction: it counts the stronger ones, and that is its place in values and coefficients.

fn directions(lane: u32) {
    let w = table.widest;
    let first = 2u * index * w * w;
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
