// split: color = x < divider ? before : after, and a line over the divider
//
// before and after are pictures of any size over the same place: three planes of height × width each, red, green and blue,
// in 0…1 and sRGB, as the decoder leaves them.
//
// A soft picture is read between the centres of its pixels (bilinear, edges repeated); otherwise every pixel is a square.

struct Split {
    place: Place,
    // sRGB.
    line: vec4<f32>,
    // Width and height.
    before: vec2<f32>,
    after: vec2<f32>,
    // 1 for a soft picture: before, after.
    soft: vec2<f32>,
    // In pixels of the target; a line without thickness is not painted.
    divider: f32,
    thickness: f32,
}

@group(0) @binding(0) var<uniform> split: Split;
@group(0) @binding(1) var<storage, read> before: array<f32>;
@group(0) @binding(2) var<storage, read> after: array<f32>;

fn number(left: bool, i: u32) -> f32 {
    if left {
        return before[split.place.first.x + i];
    }
    return after[split.place.first.y + i];
}

fn texel(left: bool, size: vec2<f32>, at: vec2<f32>) -> vec3<f32> {
    let inside = vec2<u32>(clamp(at, vec2<f32>(0.0), size - vec2<f32>(1.0)));
    let width = u32(size.x);
    let plane = width * u32(size.y);
    let i = inside.y * width + inside.x;
    return vec3<f32>(number(left, i), number(left, plane + i), number(left, 2u * plane + i));
}

// At a place in 0…1.
fn picture(left: bool, at: vec2<f32>) -> vec3<f32> {
    let size = select(split.after, split.before, left);
    if select(split.soft.y, split.soft.x, left) == 0.0 {
        return texel(left, size, at * size);
    }
    let corner = floor(at * size - vec2<f32>(0.5));
    let part = at * size - vec2<f32>(0.5) - corner;
    let right = vec2<f32>(1.0, 0.0);
    let below = vec2<f32>(0.0, 1.0);
    let top = mix(texel(left, size, corner), texel(left, size, corner + right), part.x);
    let bottom = mix(texel(left, size, corner + below), texel(left, size, corner + right + below), part.x);
    return mix(top, bottom, part.y);
}

@fragment
fn shade(@builtin(position) pixel: vec4<f32>) -> @location(0) vec4<f32> {
    let at = (pixel.xy - split.place.origin) / split.place.size;
    let color = clamp(picture(pixel.x < split.divider, at), vec3<f32>(0.0), vec3<f32>(1.0));
    let line = clamp(0.5 * split.thickness + 0.5 - abs(pixel.x - split.divider), 0.0, min(split.thickness, 1.0));
    return painted(split.place, mix(color, split.line.rgb, line), 1.0);
}
