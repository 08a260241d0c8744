//! `ΔW = scale · w1 ⊗ w2`, kept as its two factors: multiplied out, those of an adapter for SDXL take gigabytes.

use crate::engine::io::lora_file::Difference;
use crate::engine::io::lora_file::parts::{Array, Wrong, room};

#[derive(Clone, Debug, PartialEq)]
pub struct Kronecker {
    /// `[o₁, i₁]`.
    pub w1: Array,
    /// `[o₂, i₂]`, or with a kernel `[o₂, i₂, kh, kw]`.
    pub w2: Array,
    pub scale: f64,
}

impl Kronecker {
    pub fn new(w1: Array, w2: Array, scale: f64) -> Result<Self, Wrong> {
        if w1.shape.get(2..).is_some_and(|rest| rest.iter().any(|&side| side != 1)) {
            return Err(format!("its w1 has the shape {:?}", w1.shape));
        }
        room(&[room(&[w1.rows(), w2.rows()])?, room(&[w1.columns(), w2.columns()])?])?;
        Ok(Self { w1, w2, scale })
    }

    /// `[o₁·o₂, i₁·i₂]`, or with a kernel `[o₁·o₂, i₁·i₂, kh, kw]`.
    pub fn shape(&self) -> Vec<usize> {
        let Self { w1, w2, .. } = self;
        let inner = w2.shape.get(1).copied().unwrap_or(1);
        [&[w1.rows() * w2.rows(), w1.columns() * inner], w2.shape.get(2..).unwrap_or(&[])].concat()
    }

    pub fn product(&self) -> Difference {
        let Self { w1, w2, scale } = self;
        let mut weight = Vec::with_capacity(w1.values.len() * w2.values.len());
        for i in 0..w1.rows() {
            for k in 0..w2.rows() {
                for &a in w1.row(i) {
                    let a = scale * f64::from(a);
                    weight.extend(w2.row(k).iter().map(|&b| (a * f64::from(b)) as f32));
                }
            }
        }
        Difference { weight, shape: self.shape(), bias: None }
    }

    /// As files keep it: without a scale.
    #[must_use]
    pub fn folded(&self) -> Self {
        let mut folded = Self { scale: 1.0, ..self.clone() };
        folded.w1.values.iter_mut().for_each(|x| *x = (self.scale * f64::from(*x)) as f32);
        folded
    }

    /// Gives w2 the kernel that a flattened one has forgotten, where the layer's weight has this shape.
    pub fn set_kernel(&mut self, shape: &[usize]) {
        if let ([out, input], [_, channels, kernel @ ..]) = (&self.w2.shape[..], shape)
            && let inner = channels / self.w1.columns().max(1)
            && inner * kernel.iter().product::<usize>() == *input
        {
            self.w2.shape = [&[*out, inner], kernel].concat();
        }
    }

    /// The numbers it holds.
    pub fn numbers(&self) -> usize {
        self.w1.values.len() + self.w2.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::Philox;

    /// The numbers are the same, and only their shape is told again.
    #[test]
    fn a_flattened_kernel_comes_back() {
        let array = |shape: &[usize], i| Array {
            values: Philox::new(7).normal(i, shape.iter().product()),
            shape: shape.to_vec(),
        };
        let mut whole = Kronecker::new(array(&[2, 3], 0), array(&[4, 5, 3, 3], 1), 0.5).unwrap();
        assert_eq!(whole.shape(), [8, 15, 3, 3]);
        let mut flat = whole.clone();
        flat.w2.shape = vec![4, 45];
        assert_eq!(flat.shape(), [8, 135]);
        assert_eq!(flat.product().weight, whole.product().weight);
        for of in [&mut flat, &mut whole] {
            of.set_kernel(&[8, 15, 3, 3]);
        }
        assert_eq!(flat, whole);
    }
}
