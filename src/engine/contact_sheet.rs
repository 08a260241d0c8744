//! A labelled grid of pictures: one row per label, read like a printed contact sheet.

use ab_glyph::{Font as _, FontRef, PxScaleFont, ScaleFont as _, point};
use epaint_default_fonts::UBUNTU_LIGHT;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

const PAPER: Rgb<u8> = Rgb([250, 249, 246]);
const INK: Rgb<u8> = Rgb([28, 28, 32]);
/// Around each picture, because many are white at their edge.
const FRAME: Rgb<u8> = Rgb([205, 203, 198]);

const MARGIN: u32 = 24;
const GAP: u32 = 12;
/// Wider labels are wrapped: beyond this the pictures would be the smaller half of the sheet.
const LABEL_WIDTH: u32 = 240;
/// Three or four words of a heading; narrower columns would break words.
const HEADED_COLUMN: u32 = 112;
/// Room for a title when there are few pictures.
const CONTENT_WIDTH: u32 = 432;

/// Heights of a line in pixels, from the top of an accent to the bottom of a g.
const TITLE: f32 = 30.0;
const LABEL: f32 = 19.0;
const HEADING: f32 = 17.0;

/// One line of the sheet. Rows may be of different lengths and hold pictures of different sizes.
#[derive(Clone, Debug)]
pub struct Row {
    pub label: String,
    pub pictures: Vec<RgbImage>,
}

/// Draws the sheet. `headings` stand over the columns and may be empty; every pixel of a picture becomes a square of
/// `magnify` pixels, so that nothing is smoothed away.
pub fn draw(title: &str, headings: &[String], rows: &[Row], magnify: u32) -> RgbImage {
    let [title_face, label_face, heading_face] = [TITLE, LABEL, HEADING].map(Face::new);
    let magnify = magnify.max(1);

    let label_width = rows.iter().map(|row| label_face.width(&row.label)).max().unwrap_or(0).min(LABEL_WIDTH);
    let columns = rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0).max(headings.len());
    let column_widths: Vec<u32> = (0..columns)
        .map(|i| {
            let picture = rows.iter().filter_map(|row| row.pictures.get(i)).map(|p| p.width() * magnify).max();
            picture.unwrap_or(0).max(if headings.is_empty() { 0 } else { HEADED_COLUMN })
        })
        .collect();
    let lefts: Vec<u32> = column_widths
        .iter()
        .scan(MARGIN + if label_width > 0 { label_width + 2 * GAP } else { 0 }, |next, width| {
            let left = *next;
            *next += width + GAP;
            Some(left)
        })
        .collect();
    let right = lefts.last().zip(column_widths.last()).map_or(MARGIN + label_width, |(left, width)| left + width);
    let content_width = (right - MARGIN).max(CONTENT_WIDTH);

    let title_lines = title_face.wrap(title, content_width);
    let heading_lines: Vec<_> = headings.iter().zip(&column_widths).map(|(h, &w)| heading_face.wrap(h, w)).collect();
    let label_lines: Vec<_> = rows.iter().map(|row| label_face.wrap(&row.label, label_width)).collect();
    let row_heights: Vec<u32> = rows
        .iter()
        .zip(&label_lines)
        .map(|(row, lines)| {
            let picture = row.pictures.iter().map(|p| p.height() * magnify).max().unwrap_or(0);
            picture.max(label_face.height(lines))
        })
        .collect();

    let title_height = title_face.height(&title_lines);
    let headings_top = MARGIN + title_height + if title_height > 0 { 2 * GAP } else { 0 };
    let heading_height = heading_lines.iter().map(|lines| heading_face.height(lines)).max().unwrap_or(0);
    let first_row = headings_top + heading_height + if heading_height > 0 { GAP } else { 0 };
    let rows_height: u32 = row_heights.iter().map(|height| height + GAP).sum();

    let mut sheet =
        RgbImage::from_pixel(content_width + 2 * MARGIN, first_row + rows_height.saturating_sub(GAP) + MARGIN, PAPER);
    title_face.draw(&mut sheet, &title_lines, MARGIN, MARGIN);
    for (lines, &left) in heading_lines.iter().zip(&lefts) {
        // On the pictures, not in the air: short headings stand at the bottom of the band.
        heading_face.draw(&mut sheet, lines, left, headings_top + heading_height - heading_face.height(lines));
    }
    let mut top = first_row;
    for ((row, lines), height) in rows.iter().zip(&label_lines).zip(row_heights) {
        label_face.draw(&mut sheet, lines, MARGIN, top + (height - label_face.height(lines)) / 2);
        for (picture, &left) in row.pictures.iter().zip(&lefts) {
            place(&mut sheet, picture, magnify, left, top);
        }
        top += height + GAP;
    }
    sheet
}

fn place(sheet: &mut RgbImage, picture: &RgbImage, magnify: u32, left: u32, top: u32) {
    let [width, height] = [picture.width() * magnify, picture.height() * magnify];
    if width == 0 || height == 0 {
        return;
    }
    let frame = RgbImage::from_pixel(width + 2, height + 2, FRAME);
    imageops::replace(sheet, &frame, i64::from(left) - 1, i64::from(top) - 1);
    let large = imageops::resize(picture, width, height, FilterType::Nearest);
    imageops::replace(sheet, &large, i64::from(left), i64::from(top));
}

/// A field of one colour with a word in its middle.
pub fn field(word: &str, colour: Rgb<u8>, width: u32, height: u32) -> RgbImage {
    let face = Face::new(LABEL);
    let mut picture = RgbImage::from_pixel(width, height, colour);
    let lines = [word.to_owned()];
    let [left, top] = [width.saturating_sub(face.width(word)) / 2, height.saturating_sub(face.height(&lines)) / 2];
    face.draw(&mut picture, &lines, left, top);
    picture
}

/// The font at one size.
struct Face(PxScaleFont<FontRef<'static>>);

impl Face {
    fn new(height: f32) -> Self {
        let font = FontRef::try_from_slice(UBUNTU_LIGHT).unwrap_or_else(|e| panic!("the built-in font is broken: {e}"));
        Self(font.into_scaled(height))
    }

    fn width(&self, text: &str) -> u32 {
        let mut previous = None;
        let mut width = 0.0;
        for c in text.chars() {
            let glyph = self.0.glyph_id(c);
            width += previous.map_or(0.0, |previous| self.0.kern(previous, glyph)) + self.0.h_advance(glyph);
            previous = Some(glyph);
        }
        width.ceil() as u32
    }

    fn height(&self, lines: &[String]) -> u32 {
        (self.0.height() * lines.len() as f32).ceil() as u32
    }

    /// Lines no wider than `width`, broken between words, and inside a word only where it alone is too wide.
    fn wrap(&self, text: &str, width: u32) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            if let Some(line) = lines.last_mut() {
                let longer = format!("{line} {word}");
                if self.width(&longer) <= width {
                    *line = longer;
                    continue;
                }
            }
            let mut line = String::new();
            for c in word.chars() {
                line.push(c);
                if self.width(&line) > width && line.chars().count() > 1 {
                    line.pop();
                    lines.push(std::mem::replace(&mut line, c.to_string()));
                }
            }
            lines.push(line);
        }
        lines
    }

    fn draw(&self, sheet: &mut RgbImage, lines: &[String], left: u32, top: u32) {
        let mut baseline = top as f32 + self.0.ascent();
        for line in lines {
            let mut x = left as f32;
            let mut previous = None;
            for c in line.chars() {
                let id = self.0.glyph_id(c);
                x += previous.map_or(0.0, |previous| self.0.kern(previous, id));
                self.glyph(sheet, id.with_scale_and_position(self.0.scale, point(x, baseline)));
                x += self.0.h_advance(id);
                previous = Some(id);
            }
            baseline += self.0.height();
        }
    }

    fn glyph(&self, sheet: &mut RgbImage, glyph: ab_glyph::Glyph) {
        let Some(outline) = self.0.outline_glyph(glyph) else { return };
        let corner = outline.px_bounds().min;
        outline.draw(|x, y, coverage| {
            let [x, y] = [corner.x as i64 + i64::from(x), corner.y as i64 + i64::from(y)].map(|v| v.max(0) as u32);
            if let Some(pixel) = sheet.get_pixel_mut_checked(x, y) {
                // Each stroke of the light face covers under two pixels; a plain blend would leave it grey.
                let alpha = coverage.min(1.0).powf(0.7);
                for (below, ink) in pixel.0.iter_mut().zip(INK.0) {
                    *below = (f32::from(*below) * (1.0 - alpha) + f32::from(ink) * alpha).round() as u8;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLOURS: [[u8; 3]; 4] = [[230, 20, 20], [20, 200, 20], [40, 40, 240], [240, 200, 0]];

    fn picture(colour: usize, width: u32, height: u32) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb(COLOURS[colour]))
    }

    fn row(label: &str, pictures: impl IntoIterator<Item = RgbImage>) -> Row {
        Row { label: label.into(), pictures: pictures.into_iter().collect() }
    }

    /// `[left, top, right, bottom]` of the pixels that are `wanted`, the last two excluded.
    fn bounds(sheet: &RgbImage, wanted: impl Fn([u8; 3]) -> bool) -> [u32; 4] {
        sheet
            .enumerate_pixels()
            .filter(|(.., pixel)| wanted(pixel.0))
            .fold([u32::MAX, u32::MAX, 0, 0], |b, (x, y, _)| {
                [b[0].min(x), b[1].min(y), b[2].max(x + 1), b[3].max(y + 1)]
            })
    }

    fn ink(sheet: &RgbImage, [left, top, right, bottom]: [u32; 4]) -> usize {
        let dark = |&(x, y): &(u32, u32)| sheet.get_pixel(x, y).0.iter().all(|&v| v < 90);
        (top..bottom).flat_map(|y| (left..right).map(move |x| (x, y))).filter(dark).count()
    }

    #[test]
    fn pictures_stand_in_rows_and_columns_at_their_whole_size() {
        let rows = [
            row("first", [picture(0, 10, 8), picture(1, 20, 8)]),
            row("second", [picture(2, 10, 30), picture(3, 4, 4)]),
        ];
        let sheet = draw("Sheet", &["left".into(), "right".into()], &rows, 3);
        let [red, green, blue, yellow] = COLOURS.map(|colour| bounds(&sheet, |pixel| pixel == colour));
        for (bounds, [width, height]) in [(red, [30, 24]), (green, [60, 24]), (blue, [30, 90]), (yellow, [12, 12])] {
            assert_eq!([bounds[2] - bounds[0], bounds[3] - bounds[1]], [width, height]);
        }
        assert_eq!((red[0], red[1]), (blue[0], green[1]));
        assert_eq!((green[0], blue[1]), (yellow[0], yellow[1]));
        assert!(red[2] < green[0] && red[3] < blue[1]);
        assert!(ink(&sheet, [0, 0, sheet.width(), red[1] - 40]) > 50, "no title");
        assert!(ink(&sheet, [green[0], red[1] - 30, sheet.width(), red[1]]) > 10, "no heading");
        for top in [red, blue] {
            assert!(ink(&sheet, [0, top[1], top[0], top[3]]) > 20, "no label");
        }
    }

    #[test]
    fn long_texts_are_wrapped_and_never_touch_the_edge() {
        let long =
            "an_endless_file_name_without_a_single_space.safetensors at strength 0.8 and many more words than fit";
        let rows = [row(long, [picture(0, 8, 8)]), row(long, [picture(1, 8, 8)])];
        let sheet = draw(&long.repeat(3), &[long.into()], &rows, 1);
        let paper = |pixel| pixel == PAPER.0;
        let [left, top, right, bottom] = bounds(&sheet, |pixel| !paper(pixel));
        assert!(left >= MARGIN - 2 && top >= MARGIN && right <= sheet.width() - MARGIN + 2);
        assert!(bottom <= sheet.height() - MARGIN + 2);
        let [red, green] = [0, 1].map(|i| bounds(&sheet, |pixel| pixel == COLOURS[i]));
        assert_eq!(ink(&sheet, [red[0] - GAP, red[1], sheet.width(), green[3]]), 0, "a label runs into the pictures");
    }

    #[test]
    fn nothing_to_show_is_still_a_sheet() {
        assert!(draw("", &[], &[], 0).width() > 0);
        assert!(draw("Only a title", &[], &[row("", []), row("x", [RgbImage::new(0, 0)])], 1).height() > 50);
    }
}
