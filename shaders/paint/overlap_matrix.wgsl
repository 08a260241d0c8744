// overlap_matrix: color = mix(zero, cosine < 0 ? negative : positive, min(|cosine| / full, 1))
//
// cosines is count × count, row by row: each holds the cosine of two adapters' changes, 0 where there is nothing to say,
// as on the diagonal. Blue is against each other, orange the same way: told apart by every kind of colour vision.
//
// Every cell is a rounded rectangle with an edge as soft as egui's; between the cells nothing is painted.

struct Matrix {
    place: Place,
    // sRGB.
    negative: vec4<f32>,
    zero: vec4<f32>,
    positive: vec4<f32>,
    // In pixels: of a cell, and from one to the next.
    cell: vec2<f32>,
    step: vec2<f32>,
    count: f32,
    // The cosine of the full color.
    full: f32,
    radius: f32,
}

@group(0) @binding(0) var<uniform> matrix: Matrix;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;

// Share of a pixel that lies inside of a rounded rectangle around 0.
fn covered(at: vec2<f32>, half: vec2<f32>, radius: f32) -> f32 {
    let past = abs(at) - half + vec2<f32>(radius);
    let distance = length(max(past, vec2<f32>(0.0))) + min(max(past.x, past.y), 0.0) - radius;
    return clamp(0.5 - distance, 0.0, 1.0);
}

@fragment
fn shade(@builtin(position) pixel: vec4<f32>) -> @location(0) vec4<f32> {
    let at = pixel.xy - matrix.place.origin;
    let last = vec2<f32>(matrix.count - 1.0);
    let index = clamp(floor(at / matrix.step), vec2<f32>(0.0), last);
    let cosine = cosines[matrix.place.first.x + u32(index.y * matrix.count + index.x)];
    let share = min(abs(cosine) / matrix.full, 1.0);
    let end = select(matrix.positive, matrix.negative, cosine < 0.0);
    let color = mix(matrix.zero.rgb, end.rgb, share);
    let half = 0.5 * matrix.cell;
    return painted(matrix.place, color, covered(at - index * matrix.step - half, half, matrix.radius));
}
