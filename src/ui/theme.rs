//! Colours and sizes, dark and light. Panels take theirs from here.

use egui::{Color32, Context, CornerRadius, FontFamily, FontId, Stroke, TextStyle, Theme, Ui, Visuals};

/// Distances in points.
pub const GAP: f32 = 8.0;
pub const CARD: f32 = 6.0;

/// What colours mean here. No meaning rests on red against green.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    pub accent: Color32,
    pub good: Color32,
    pub warning: Color32,
    pub error: Color32,
    /// Behind cards.
    pub card: Color32,
    pub curve: Color32,
    pub faint: Color32,
}

const DARK: Palette = Palette {
    accent: Color32::from_rgb(0x6c, 0xb6, 0xff),
    good: Color32::from_rgb(0x5f, 0xd0, 0xb0),
    warning: Color32::from_rgb(0xf2, 0xa6, 0x5a),
    error: Color32::from_rgb(0xff, 0x8a, 0x80),
    card: Color32::from_rgb(0x26, 0x2a, 0x31),
    curve: Color32::from_rgb(0x6c, 0xb6, 0xff),
    faint: Color32::from_rgb(0x5a, 0x64, 0x72),
};

const LIGHT: Palette = Palette {
    accent: Color32::from_rgb(0x0b, 0x5c, 0xad),
    good: Color32::from_rgb(0x00, 0x6b, 0x55),
    warning: Color32::from_rgb(0x92, 0x4c, 0x00),
    error: Color32::from_rgb(0xb0, 0x1c, 0x1c),
    card: Color32::from_rgb(0xff, 0xff, 0xff),
    curve: Color32::from_rgb(0x0b, 0x5c, 0xad),
    faint: Color32::from_rgb(0x9a, 0xa3, 0xae),
};

/// The palette of the theme in use.
pub fn palette(ui: &Ui) -> Palette {
    if ui.visuals().dark_mode { DARK } else { LIGHT }
}

/// Sets both themes.
pub fn install(ctx: &Context) {
    for (theme, palette) in [(Theme::Dark, DARK), (Theme::Light, LIGHT)] {
        let mut visuals = if theme == Theme::Dark { Visuals::dark() } else { Visuals::light() };
        if theme == Theme::Dark {
            visuals.panel_fill = Color32::from_rgb(0x1d, 0x20, 0x26);
            visuals.window_fill = visuals.panel_fill;
            visuals.extreme_bg_color = Color32::from_rgb(0x14, 0x16, 0x1a);
            visuals.override_text_color = Some(Color32::from_rgb(0xe3, 0xe6, 0xea));
        } else {
            visuals.panel_fill = Color32::from_rgb(0xf1, 0xf2, 0xf4);
            visuals.window_fill = visuals.panel_fill;
            visuals.override_text_color = Some(Color32::from_rgb(0x1c, 0x20, 0x26));
        }
        visuals.weak_text_color = Some(if theme == Theme::Dark {
            Color32::from_rgb(0xa6, 0xae, 0xb8)
        } else {
            Color32::from_rgb(0x4a, 0x52, 0x5c)
        });
        visuals.selection.bg_fill = palette.accent.gamma_multiply(0.45);
        visuals.selection.stroke = Stroke::new(1.5, palette.accent);
        visuals.hyperlink_color = palette.accent;
        // Focus must be seen: egui draws the focused widget as a hovered one, so its outline is made plain.
        visuals.widgets.hovered.bg_stroke = Stroke::new(1.5, palette.accent);
        visuals.widgets.active.bg_stroke = Stroke::new(2.0, palette.accent);
        for widget in [
            &mut visuals.widgets.inactive,
            &mut visuals.widgets.hovered,
            &mut visuals.widgets.active,
            &mut visuals.widgets.open,
        ] {
            widget.corner_radius = CornerRadius::same(4);
        }
        ctx.set_visuals_of(theme, visuals);
    }
    ctx.all_styles_mut(|style| {
        style.spacing.item_spacing = egui::vec2(GAP, 6.0);
        // As high as a button, so that a word beside one stands in its middle.
        style.spacing.interact_size.y = 25.0;
        style.spacing.button_padding = egui::vec2(8.0, 4.0);
        style.interaction.tooltip_delay = 0.3;
        style.text_styles.insert(TextStyle::Heading, FontId::new(16.0, FontFamily::Proportional));
        style.text_styles.insert(TextStyle::Body, FontId::new(13.5, FontFamily::Proportional));
        style.text_styles.insert(TextStyle::Button, FontId::new(13.5, FontFamily::Proportional));
        style.text_styles.insert(TextStyle::Small, FontId::new(11.5, FontFamily::Proportional));
    });
}

/// The frame of a card.
pub fn card(ui: &Ui) -> egui::Frame {
    egui::Frame::new()
        .fill(palette(ui).card)
        .stroke(ui.visuals().widgets.noninteractive.bg_stroke)
        .corner_radius(CornerRadius::same(6))
        .inner_margin(CARD)
}
