// heat_strip: color = inferno((log2 σ − low) / (high − low))
//
// values is layers × indices, layer by layer: each holds one singular value σ, or less than 0 where the layer has no such
// index; nothing is painted there. A layer is a column, an index a row.
//
// low and high are log2 of the scale's ends. Cells that are wide enough stay gap pixels apart.
//
// inferno is matplotlib's (CC0), whose lightness rises evenly for every kind of colour vision, as a polynomial of the
// sixth degree (Matt Zucker, CC0). Its twin is ui/color_map.rs.

struct Strip {
    place: Place,
    // Layers and indices.
    grid: vec2<f32>,
    low: f32,
    high: f32,
    gap: f32,
}

@group(0) @binding(0) var<uniform> strip: Strip;
@group(0) @binding(1) var<storage, read> values: array<f32>;

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

@fragment
fn shade(@builtin(position) pixel: vec4<f32>) -> @location(0) vec4<f32> {
    let cell = strip.place.size / strip.grid;
    let at = (pixel.xy - strip.place.origin) / cell;
    let column = u32(clamp(at.x, 0.0, strip.grid.x - 1.0));
    let row = u32(clamp(at.y, 0.0, strip.grid.y - 1.0));
    let sigma = values[strip.place.first.x + column * u32(strip.grid.y) + row];
    let past = fract(at) * cell;
    if sigma < 0.0 || past.x >= cell.x - strip.gap || past.y >= cell.y - strip.gap {
        return vec4<f32>(0.0);
    }
    let t = clamp((log2(max(sigma, TINY)) - strip.low) / (strip.high - strip.low), 0.0, 1.0);
    return painted(strip.place, inferno(t), 1.0);
}
