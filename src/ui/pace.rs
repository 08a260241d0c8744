//! How fluid the window is: time of the UI thread and between frames.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const KEPT: usize = 1000;
/// A longer gap is the window waiting for something to happen, not a slow frame.
const AT_REST: Duration = Duration::from_millis(400);

#[derive(Debug, Default)]
pub struct Pace {
    /// Seconds that the UI thread worked for a frame, everything but the wait for the display.
    work: VecDeque<f32>,
    /// Seconds from one frame to the next while frames follow each other.
    frame: VecDeque<f32>,
    last: Option<Instant>,
}

/// Seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub work: [f32; 2],
    pub frame: [f32; 2],
    pub frames: usize,
}

impl Pace {
    pub fn frame(&mut self, work: Option<f32>) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let gap = now - last;
            if gap < AT_REST {
                push(&mut self.frame, gap.as_secs_f32());
            }
        }
        if let Some(work) = work {
            push(&mut self.work, work);
        }
    }

    /// Median and 99th percentile.
    pub fn figures(&self) -> Figures {
        Figures { work: percentiles(&self.work), frame: percentiles(&self.frame), frames: self.work.len() }
    }

    /// Starts anew, e.g. when a training begins.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

fn push(values: &mut VecDeque<f32>, value: f32) {
    if values.len() == KEPT {
        values.pop_front();
    }
    values.push_back(value);
}

fn percentiles(values: &VecDeque<f32>) -> [f32; 2] {
    let mut sorted: Vec<f32> = values.iter().copied().collect();
    sorted.sort_by(f32::total_cmp);
    [0.5, 0.99].map(|share: f32| {
        let place = (share * sorted.len() as f32) as usize;
        sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_ramp() {
        let ramp: VecDeque<f32> = (0..100).map(|i| i as f32).collect();
        let near = |a: [f32; 2], b: [f32; 2]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(percentiles(&ramp), [50.0, 99.0]));
        assert!(near(percentiles(&VecDeque::new()), [0.0; 2]));
    }
}
