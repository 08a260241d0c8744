//! What is drawn, made once for each adapter or snapshot.

use egui::Color32;

use super::layer::Layer;
use crate::engine::spectrum::effective_rank;
use crate::ui::color_map::inferno;
use crate::ui::gpu_paint::Numbers;

/// Factors of ten that the colours span at most: what is weaker than that cannot be seen in a picture.
const DECADES: f32 = 4.0;
/// Layers and indices beyond these are narrower than a pixel on any display.
const LARGEST: usize = 2048;
/// Share of the values that may be darker than the scale.
const DARKEST: f32 = 0.02;

/// One layer.
pub struct Column {
    pub layer: Layer,
    /// Non-increasing.
    pub values: Vec<f64>,
}

/// Neighbouring columns of one stretch of the model.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub short: String,
    pub start: usize,
    pub end: usize,
}

pub struct Shown {
    /// In the model's order.
    pub columns: Vec<Column>,
    pub groups: Vec<Group>,
    /// Layer by layer, [`Self::rows`] each; less than 0 where a layer has fewer.
    pub values: Numbers,
    pub rows: usize,
    /// Values of the darkest and the brightest colour.
    pub low: f32,
    pub high: f32,
    /// Mean over the layers.
    pub effective_rank: f64,
    /// Σσ² of all layers.
    pub energy: f64,
}

impl Shown {
    /// `strongest` is the brightest colour, if that is to be the same for several.
    pub fn new<'a>(layers: impl Iterator<Item = (&'a str, Vec<f64>)>, strongest: Option<f32>) -> Self {
        let (names, mut values): (Vec<_>, Vec<_>) = layers.map(|(name, values)| (Layer::new(name), values)).unzip();
        let mut names: Vec<_> = names.into_iter().enumerate().map(|(i, layer)| (layer, i)).collect();
        Layer::sort(&mut names);
        let take = |(layer, i): (Layer, usize)| Column { layer, values: std::mem::take(&mut values[i]) };
        let columns: Vec<Column> = names.into_iter().take(LARGEST).map(take).collect();
        let all = || columns.iter().flat_map(|column| &column.values);
        let high = strongest.unwrap_or_else(|| all().fold(0.0, |most: f64, &x| most.max(x)) as f32);
        // Before the first step all of it is zero, and any scale is right.
        let high = if high > 0.0 { high } else { 1.0 };
        let mut found: Vec<f32> = all().map(|&x| x as f32).filter(|&x| x > 0.0).collect();
        found.sort_by(f32::total_cmp);
        let weak = found.get((found.len() as f32 * DARKEST) as usize).copied().unwrap_or(0.0);
        let low = weak.clamp(high * 10f32.powf(-DECADES), high / 2.0);
        let rows = columns.iter().map(|column| column.values.len()).max().unwrap_or(0).clamp(1, LARGEST);
        let ranks: f64 = columns.iter().map(|column| effective_rank(&column.values)).sum();
        Self {
            groups: groups(&columns),
            values: Numbers::Host(columns.iter().flat_map(|column| cells(column, rows)).collect()),
            rows,
            effective_rank: ranks / columns.len().max(1) as f64,
            energy: all().map(|x| x * x).sum(),
            low,
            high,
            columns,
        }
    }

    /// As the shader colours a value.
    pub fn color(&self, value: f64) -> Color32 {
        let share = (value.max(1e-30) / f64::from(self.low)).log2() / f64::from(self.high / self.low).log2();
        inferno(share as f32)
    }
}

fn groups(columns: &[Column]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (i, Column { layer, .. }) in columns.iter().enumerate() {
        match groups.last_mut().filter(|group| group.name == layer.group) {
            Some(group) => group.end = i + 1,
            None => groups.push(Group { name: layer.group.clone(), short: layer.short.clone(), start: i, end: i + 1 }),
        }
    }
    groups
}

fn cells(column: &Column, rows: usize) -> impl Iterator<Item = f32> {
    (0..rows).map(|row| column.values.get(row).map_or(-1.0, |&x| x as f32))
}

/// Three digits that count.
pub fn number(x: f64) -> String {
    let size = x.abs();
    match size {
        0.0 => "0".into(),
        0.001..10_000.0 => format!("{x:.*}", (2 - size.log10().floor() as i32).max(0) as usize),
        _ => format!("{x:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn columns_follow_the_model_and_short_layers_leave_holes() {
        let layers = [
            ("lora_unet_up_blocks_1_attentions_0_proj_in", vec![0.5]),
            ("lora_te_text_model_encoder_layers_0_mlp_fc1", vec![4.0, 3.0]),
            ("lora_unet_up_blocks_1_attentions_0_proj_out", vec![2.0, 1.0]),
        ];
        let shown = Shown::new(layers.into_iter(), None);
        assert_eq!(shown.values, Numbers::Host(Arc::from([4.0, 3.0, 0.5, -1.0, 2.0, 1.0])));
        assert_eq!(shown.rows, 2);
        let spans: Vec<_> = shown.groups.iter().map(|g| (g.name.as_str(), g.start, g.end)).collect();
        assert_eq!(spans, [("text", 0, 1), ("up 1", 1, 3)]);
        assert!((shown.high - 4.0).abs() < 1e-6 && (shown.low - 0.5).abs() < 1e-6);
        assert_eq!([0.0, 0.5, 4.0, 9.0].map(|value| shown.color(value)), [0.0, 0.0, 1.0, 1.0].map(inferno));
    }

    #[test]
    fn a_scale_is_sound_for_nothing_and_for_zeros() {
        for values in [vec![], vec![0.0; 4]] {
            let shown = Shown::new([("lora_unet_conv_in", values)].into_iter(), Some(0.0));
            assert!(shown.low > 0.0 && shown.low < shown.high && shown.rows > 0);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (x, text) in [(0.0, "0"), (12.345, "12.3"), (0.012_34, "0.0123"), (1234.5, "1234"), (3.2e-7, "3.2e-7")] {
            assert_eq!(number(x), text);
        }
    }
}
