// Jacobi's rotations: they turn the columns of the core [widest, widest in fours] until these are orthogonal (Hestenes 1958)
//
// An invocation takes a pair of columns, four numbers at a time.

const SWEEPS = 9u;

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
fn rotations(lane: u32) {
    let w = table.widest;
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
}
