//! The steady losses of a run, and what goes by them: which adapter was the best, and whether it is time to end.
//!
//! Early stopping as in Prechelt, *Early Stopping – But When?* (1998): after so many measurements without a new lowest,
//! the network of the lowest is the result.

/// Step and steady loss of every measurement, earliest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course(Vec<(usize, f32)>);

impl Course {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a measurement; whether it is the lowest so far.
    pub fn push(&mut self, step: usize, loss: f32) -> bool {
        self.0.push((step, loss));
        self.best().is_some_and(|(best, _)| best == step)
    }

    /// The lowest, and the earliest among equals.
    pub fn best(&self) -> Option<(usize, f32)> {
        self.0.iter().copied().reduce(|best, next| if next.1 < best.1 { next } else { best })
    }

    /// Whether the latest `patience` measurements brought no new lowest.
    pub fn stalls(&self, patience: usize) -> bool {
        let best = self.best().map_or(0, |(step, _)| step);
        self.0.iter().filter(|(step, _)| *step > best).count() >= patience
    }

    /// `[n, 2]`, as a state keeps it. f32 holds every step number that the field allows.
    pub fn rows(&self) -> Vec<f32> {
        self.0.iter().flat_map(|&(step, loss)| [step as f32, loss]).collect()
    }

    pub fn of_rows(rows: &[f32]) -> Self {
        Self(rows.chunks_exact(2).map(|row| (row[0] as usize, row[1])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_curve_ends_where_it_stalls() {
        let mut course = Course::default();
        let curve = [0.9, 0.5, 0.6, 0.4, 0.41, 0.4, 0.42, 0.1];
        let mut lowest = Vec::new();
        let mut ends = [None; 3];
        for (i, loss) in curve.into_iter().enumerate() {
            let step = 25 * (i + 1);
            if course.push(step, loss) {
                lowest.push(step);
            }
            for (patience, end) in ends.iter_mut().enumerate() {
                if end.is_none() && course.stalls(patience + 1) {
                    *end = Some(step);
                }
            }
        }
        assert_eq!(lowest, [25, 50, 100, 200]);
        assert_eq!(ends, [Some(75), Some(150), Some(175)]);
        assert_eq!(course.best(), Some((200, 0.1)));
        assert_eq!(Course::of_rows(&course.rows()), course);
    }
}
