// heat_strip: color = inferno((log2 σ − low) / (high − low))
//
// values is a texture of layers × indices: texel (layer, index) holds one singular value σ, or less than 0 where the
// layer has no such index; nothing is painted there. It is read by textureLoad alone, because R32Float cannot be
// filtered everywhere. Its size is the size of the grid.
//
// origin and size give the strip in pixels of the target; low and high are log2 of the scale's ends. Cells that are wide
// enough stay gap pixels apart. linear is 1 where the target stores linear light and converts by itself, as *Srgb
// formats do; egui prefers the other kind.
//
// inferno is matplotlib's (CC0), whose lightness rises evenly for every kind of colour vision, as a polynomial of the
// sixth degree (Matt Zucker, CC0). Its twin is ui/color_map.rs.

struct Strip {
    origin: vec2<f32>,
    size: vec2<f32>,
    low: f32,
    high: f32,
    gap: f32,
    linear: f32,
}

@group(0) @binding(0) var<uniform> strip: Strip;
@group(0) @binding(1) var values: texture_2d<f32>;

const TINY = 1e-30;

fn inferno(t: f32) -> vec3<f32> {
    let c0 = vec3<f32>(0.00021894, 0.00165100, -0.01948090);
    let c1 = vec3<f32>(0.10651342, 0.56395644, 3.93271239);
    let c2 = vec3<f32>(11.60249308, -3.97285397, -15.94239411);
    let c3 = vec3<f32>(-41.70399613, 17.43639888, 44.35414520);
    let c4 = vec3<f32>(77.16293570, -33.40235894, -81.80730926);
    let c5 = vec3<f32>(-71.31942825, 32.62606426, 73.20951986);
    let c6 = vec3<f32>(25.13112622, -12.24266895, -23.07032500);
    let color = c0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * (c5 + t * c6)))));
    return clamp(color, vec3<f32>(0.0), vec3<f32>(1.0));
}

fn to_linear(color: vec3<f32>) -> vec3<f32> {
    let low = color / 12.92;
    let high = pow((color + vec3<f32>(0.055)) / 1.055, vec3<f32>(2.4));
    return select(high, low, color <= vec3<f32>(0.04045));
}

// One triangle over everything; the viewport cuts it down.
@vertex
fn cover(@builtin(vertex_index) corner: u32) -> @builtin(position) vec4<f32> {
    let x = f32(i32(corner & 1u) * 4 - 1);
    let y = f32(i32(corner >> 1u) * 4 - 1);
    return vec4<f32>(x, y, 0.0, 1.0);
}

@fragment
fn shade(@builtin(position) pixel: vec4<f32>) -> @location(0) vec4<f32> {
    let grid = vec2<f32>(textureDimensions(values));
    let cell = strip.size / grid;
    let place = (pixel.xy - strip.origin) / cell;
    let inside = clamp(place, vec2<f32>(0.0), grid - vec2<f32>(1.0));
    let sigma = textureLoad(values, vec2<i32>(min(place, inside + vec2<f32>(0.999))), 0).r;
    let past = fract(place) * cell;
    if sigma < 0.0 || past.x >= cell.x - strip.gap || past.y >= cell.y - strip.gap {
        return vec4<f32>(0.0);
    }
    let t = clamp((log2(max(sigma, TINY)) - strip.low) / (strip.high - strip.low), 0.0, 1.0);
    let color = inferno(t);
    return vec4<f32>(mix(color, to_linear(color), strip.linear), 1.0);
}
