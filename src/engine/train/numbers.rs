//! What is told of each step, read back for several steps at once.

use burn::tensor::Tensor;

use crate::engine::Result;
use crate::engine::device::read;
use crate::engine::train::step::{Gradients, Outcome};

/// A step's numbers, still on the device.
pub struct Unread {
    loss: Tensor<1>,
    prior: Option<Tensor<1>>,
    charged: Option<Tensor<1>>,
    gradient: Option<Tensor<1>>,
}

/// The same on the host.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub loss: f32,
    pub prior: Option<f32>,
    pub charged: Option<f32>,
    /// Joint norm of all gradients before clipping; 0 where nothing was awake.
    pub gradient: f32,
}

impl Unread {
    /// The numbers, and the gradients that need not wait for them.
    pub fn of(outcome: Outcome) -> (Self, Gradients) {
        let Outcome { loss, prior, charged, gradients } = outcome;
        (Self { loss, prior, charged, gradient: gradients.norm.clone() }, gradients)
    }
}

impl Numbers {
    /// Those of every step, with one wait for all.
    pub fn read(unread: Vec<Unread>) -> Result<Vec<Self>> {
        if unread.is_empty() {
            return Ok(Vec::new());
        }
        let mut flat = Vec::new();
        let mut place = |tensor| {
            flat.push(tensor);
            flat.len() - 1
        };
        let places: Vec<_> = unread
            .into_iter()
            .map(|Unread { loss, prior, charged, gradient }| {
                (place(loss), prior.map(&mut place), charged.map(&mut place), gradient.map(&mut place))
            })
            .collect();
        let values = read(Tensor::cat(flat, 0))?;
        let at = |place: usize| values.get(place).copied().unwrap_or(f32::NAN);
        Ok(places
            .into_iter()
            .map(|(loss, prior, charged, gradient)| Self {
                loss: at(loss),
                prior: prior.map(at),
                charged: charged.map(at),
                gradient: gradient.map_or(0.0, at),
            })
            .collect())
    }

    /// Whether every loss is a number.
    pub fn finite(&self) -> bool {
        self.loss.is_finite() && self.prior.iter().chain(&self.charged).all(|loss| loss.is_finite())
    }
}
