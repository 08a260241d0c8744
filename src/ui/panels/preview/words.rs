//! What the picture is asked to be.

use std::time::{Duration, Instant};

use egui::{CollapsingHeader, ComboBox, DragValue, Id, Label, RichText, TextEdit, Ui};

use super::emphasis;
use crate::engine::diffusion::sampler::SAMPLERS;
use crate::engine::model::chunks::Prompt;
use crate::engine::model::tokenizer::Word;
use crate::engine::preview::FIELDS;
use crate::engine::project::PreviewForm;
use crate::ui::command::Command;
use crate::ui::panels::preview::start::Start;
use crate::ui::studio::Studio;
use crate::ui::theme;
use crate::ui::widgets::form as fields;

/// A pause in typing that is long enough to paint what was typed.
const PAUSE: Duration = Duration::from_millis(250);
/// Sides offered, as multiples of the model's own.
const SIZES: [(f64, f64); 5] = [(1.0, 1.0), (1.5, 1.0), (1.0, 1.5), (2.0, 1.0), (1.0, 2.0)];

/// What a prompt can say besides words.
const LANGUAGE: &str = "(word) counts 1.1 times as much, (word:1.3) 1.3 times, [word] less; \\( is a bracket itself. BREAK \
    starts a new chunk. Ctrl+Up and Ctrl+Down change how much the selected words count";

#[derive(Default)]
pub struct Words {
    /// What is typed and not asked for yet, with the time of the last letter.
    typed: Option<(PreviewForm, Instant)>,
    start: Start,
}

impl Words {
    pub fn ui(&mut self, ui: &mut Ui, studio: &Studio, out: &mut Vec<Command>) {
        let asked = &studio.project.preview;
        let mut form = self.typed.as_ref().map_or_else(|| asked.clone(), |(form, _)| form.clone());
        let before = form.clone();
        let width = ui.available_width();
        let label = titled(ui, studio, "Prompt", LANGUAGE, &form.prompt);
        let id = ui.make_persistent_id("prompt");
        emphasis::keys(ui, id, &mut form.prompt);
        ui.add(TextEdit::multiline(&mut form.prompt).id(id).desired_rows(2).desired_width(width)).labelled_by(label);
        words(ui, studio, &mut form);
        let label = titled(ui, studio, "Negative prompt", "What the picture should not be", &form.negative);
        let id = ui.make_persistent_id("negative");
        emphasis::keys(ui, id, &mut form.negative);
        ui.add(TextEdit::singleline(&mut form.negative).id(id).desired_width(width)).labelled_by(label);
        let typing = form.prompt != before.prompt || form.negative != before.negative;
        settings(ui, studio, &mut form, out);
        self.start.ui(ui, studio, &mut form, out);
        CollapsingHeader::new("Advanced").show_unindented(ui, |ui| fields::form(ui, FIELDS, &mut form.changes, ""));
        if form == *asked {
            self.typed = None;
        } else if typing || (form == before && self.typed.is_some()) {
            let last = match (&self.typed, typing) {
                (Some((_, last)), false) => *last,
                _ => Instant::now(),
            };
            let rest = PAUSE.saturating_sub(last.elapsed());
            if rest.is_zero() {
                self.typed = None;
                out.push(Command::SetPreview(form));
            } else {
                self.typed = Some((form, last));
                ui.ctx().request_repaint_after(rest);
            }
        } else {
            self.typed = None;
            out.push(Command::SetPreview(form));
        }
    }
}

/// The name of a prompt, and how much room it takes up: `12 / 75`.
fn titled(ui: &mut Ui, studio: &Studio, name: &str, help: &str, text: &str) -> Id {
    ui.horizontal(|ui| {
        let label = ui.label(name).on_hover_text(help);
        let Some(with) = studio.opened.ready() else { return label.id };
        let open = studio.adapters.iter().filter_map(|card| card.content.ready());
        let words: Vec<Word> = open
            .flat_map(|content| &content.file.tokens)
            .map(|(word, vectors)| Word { text: word.clone(), vectors: vectors.len() })
            .collect();
        match Prompt::new(text, &with.model.tokenizer, &words) {
            Ok(prompt) => ui
                .weak(format!("{} / {}", prompt.tokens(), prompt.capacity()))
                .on_hover_text("Tokens, and how many its chunks hold: a longer prompt is read in several chunks"),
            Err(error) => ui.colored_label(theme::palette(ui).error, error.what),
        };
        label.id
    })
    .inner
}

/// The words that adapters bring: a press writes one into the prompt.
fn words(ui: &mut Ui, studio: &Studio, form: &mut PreviewForm) {
    let brought = || {
        let open = studio.adapters.iter().filter_map(|card| card.content.ready());
        open.flat_map(|content| content.file.tokens.keys())
    };
    ui.horizontal_wrapped(|ui| {
        for word in brought() {
            let used = form.prompt.contains(word.as_str());
            let text = if used { RichText::new(word).strong() } else { RichText::new(word) };
            let button = ui.small_button(text).on_hover_text("Writes this word into the prompt");
            if button.clicked() && !used {
                if !form.prompt.is_empty() && !form.prompt.ends_with(' ') {
                    form.prompt.push(' ');
                }
                form.prompt.push_str(word);
            }
        }
    });
}

fn settings(ui: &mut Ui, studio: &Studio, form: &mut PreviewForm, out: &mut Vec<Command>) {
    ui.horizontal_wrapped(|ui| {
        let label = ui.label("Sampler");
        let row = SAMPLERS.iter().find(|row| row.name == form.sampler);
        let combo = ComboBox::from_id_salt("sampler").selected_text(row.map_or("unknown", |row| row.title)).truncate();
        let combo = combo.width(130.0).show_ui(ui, |ui| {
            for row in SAMPLERS {
                ui.selectable_value(&mut form.sampler, row.name.into(), row.title).on_hover_text(row.help);
            }
        });
        combo.response.labelled_by(label.id);
        let label = ui.label("Steps");
        ui.add(DragValue::new(&mut form.steps).range(1..=200)).labelled_by(label.id);
        let label =
            ui.label("Guidance").on_hover_text("How closely the prompt is followed; 1 follows it without guidance");
        ui.add(DragValue::new(&mut form.cfg).range(1.0..=30.0).speed(0.05).max_decimals(2)).labelled_by(label.id);
        clip_skip(ui, studio, form);
    });
    ui.horizontal_wrapped(|ui| {
        size(ui, studio, form);
        let label = ui.label("Seed");
        ui.add(DragValue::new(&mut form.seed)).labelled_by(label.id);
        ui.checkbox(&mut form.seed_locked, "Lock").on_hover_text("The seed stays when another picture is asked for");
        let button = ui.button("Another").on_hover_text("Another picture: with the next seed, unless it is locked");
        if button.clicked() {
            out.push(Command::Paint);
        }
    });
}

fn clip_skip(ui: &mut Ui, studio: &Studio, form: &mut PreviewForm) {
    let Some(with) = studio.opened.ready() else { return };
    // Two words that stay together beside their field.
    let label = ui.add(Label::new("Clip skip").extend()).on_hover_text(
        "Which of the text encoder's layers is read, from the end: 1 is the last; 2 for models and adapters made with it",
    );
    let layers = with.model.text.config.num_hidden_layers;
    // What a project or a picture of another model asks for stays until it is changed, and the picture says what is wrong.
    let field = DragValue::new(&mut form.clip_skip).range(1..=layers).speed(0.05).clamp_existing_to_range(false);
    ui.add(field).labelled_by(label.id);
}

fn size(ui: &mut Ui, studio: &Studio, form: &mut PreviewForm) {
    let Some(with) = studio.opened.ready() else { return };
    let [own_width, own_height] = with.model.native_size();
    let label = ui.label("Size");
    let words = |[width, height]: [usize; 2]| format!("{width}×{height}");
    let text = form.size.map_or_else(|| words([own_width, own_height]), words);
    let combo = ComboBox::from_id_salt("size").selected_text(text).width(90.0).show_ui(ui, |ui| {
        for (x, y) in SIZES {
            let sides = [(own_width as f64 * x) as usize, (own_height as f64 * y) as usize];
            let own = (x, y) == SIZES[0];
            let value = if own { None } else { Some(sides) };
            ui.selectable_value(&mut form.size, value, words(sides));
        }
    });
    combo.response.labelled_by(label.id);
}
