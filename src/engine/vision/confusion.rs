//! How often pictures of each class were taken for each other one.

use image::{Rgb, RgbImage};
use serde::Serialize;

use crate::engine::contact_sheet::{self, Row};

/// Up to this many classes the picture has names and numbers; more would be wider than a screen many times over.
const NAMED: usize = 32;
/// A field with its number.
const FIELD: [u32; 2] = [112, 44];
/// A field without.
const DOT: u32 = 6;
/// None of a class's pictures, and all of them; dark letters are read on both.
const NONE: [u8; 3] = [255, 255, 255];
const ALL: [u8; 3] = [92, 160, 214];

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    pub classes: Vec<String>,
    /// Pictures, `[what it is][what it was taken for]`.
    pub counts: Vec<Vec<usize>>,
}

impl Confusion {
    /// From what each picture is and what it was taken for.
    pub fn new(classes: &[String], pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut counts = vec![vec![0; classes.len()]; classes.len()];
        for (is, taken_for) in pairs {
            counts[is][taken_for] += 1;
        }
        Self { classes: classes.to_vec(), counts }
    }

    /// Share of the pictures that were taken for what they are.
    pub fn accuracy(&self) -> f64 {
        let right: usize = self.counts.iter().enumerate().map(|(class, row)| row[class]).sum();
        let all: usize = self.counts.iter().flatten().sum();
        if all == 0 { 0.0 } else { right as f64 / all as f64 }
    }

    /// A row for each class that pictures are of, a column for each that they were taken for.
    pub fn picture(&self) -> RgbImage {
        let all: usize = self.counts.iter().flatten().sum();
        let title = format!(
            "{:.1} % of {all} pictures kept out of training are right. A row for what they are, a column for what they were \
             taken for",
            100.0 * self.accuracy()
        );
        let shade = |row: &[usize], n: usize| {
            let share = n as f32 / row.iter().sum::<usize>().max(1) as f32;
            Rgb([0, 1, 2].map(|c| (f32::from(NONE[c]) * (1.0 - share) + f32::from(ALL[c]) * share).round() as u8))
        };
        if self.classes.len() > NAMED {
            let side = self.classes.len() as u32;
            let dots = RgbImage::from_fn(side, side, |x, y| {
                let row = &self.counts[y as usize];
                shade(row, row[x as usize])
            });
            return contact_sheet::draw(&title, &[], &[Row { label: String::new(), pictures: vec![dots] }], DOT);
        }
        let field = |row: &[usize], n: usize| contact_sheet::field(&n.to_string(), shade(row, n), FIELD[0], FIELD[1]);
        let rows: Vec<Row> = self
            .counts
            .iter()
            .zip(&self.classes)
            .map(|(row, class)| Row { label: class.clone(), pictures: row.iter().map(|&n| field(row, n)).collect() })
            .collect();
        contact_sheet::draw(&title, &self.classes, &rows, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("class {i}")).collect()
    }

    #[test]
    fn pictures_are_counted_where_they_belong() {
        let confusion = Confusion::new(&names(3), [(0, 0), (0, 1), (1, 1), (2, 1), (2, 2)]);
        assert_eq!(confusion.counts, [[1, 1, 0], [0, 1, 0], [0, 1, 1]]);
        assert!((confusion.accuracy() - 0.6).abs() < 1e-12);
        assert!(Confusion::new(&names(2), []).accuracy() < f64::MIN_POSITIVE);
    }

    #[test]
    fn the_picture_is_as_blue_as_the_counts_say() {
        let blue = |picture: &RgbImage| picture.pixels().filter(|pixel| pixel.0 == ALL).count();
        for n in [3, NAMED + 1] {
            let right = Confusion::new(&names(n), (0..n).map(|i| (i, i))).picture();
            let half = Confusion::new(&names(n), (0..n).flat_map(|i| [(i, i), (i, (i + 1) % n)])).picture();
            assert!(blue(&right) >= n * (DOT * DOT) as usize, "{n}");
            assert_eq!(blue(&half), 0, "{n}: no class is all right");
        }
    }
}
