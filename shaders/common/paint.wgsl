// What every shader of paint/ begins with: its own text follows this one.
//
// Its uniform is a struct that begins with a Place, at group 0, binding 0; what it is painted from are the storage buffers
// behind that, each read from first.x, first.y … on, because one of the engine's tensors may begin anywhere in a buffer.

struct Place {
    // In pixels of the target.
    origin: vec2<f32>,
    size: vec2<f32>,
    // Where the numbers begin in the first and in the second buffer.
    first: vec2<u32>,
    // 1 where the target stores linear light and converts by itself, as *Srgb formats do; egui prefers the other kind.
    linear: f32,
}

// One triangle over everything; the viewport cuts it down.
@vertex
fn cover(@builtin(vertex_index) corner: u32) -> @builtin(position) vec4<f32> {
    let x = f32(i32(corner & 1u) * 4 - 1);
    let y = f32(i32(corner >> 1u) * 4 - 1);
    return vec4<f32>(x, y, 0.0, 1.0);
}

fn to_linear(color: vec3<f32>) -> vec3<f32> {
    let low = color / 12.92;
    let high = pow((color + vec3<f32>(0.055)) / 1.055, vec3<f32>(2.4));
    return select(high, low, color <= vec3<f32>(0.04045));
}

// An sRGB color as the target takes it: premultiplied.
fn painted(place: Place, color: vec3<f32>, alpha: f32) -> vec4<f32> {
    return vec4<f32>(mix(color, to_linear(color), place.linear) * alpha, alpha);
}
