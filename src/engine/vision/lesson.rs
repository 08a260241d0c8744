//! One step of teaching a classifier, and the look at pictures that it learns nothing from.

use burn::tensor::{Tensor, TensorData, activation};

use crate::engine::Result;
use crate::engine::device::read;
use crate::engine::event::{Event, Watch};
use crate::engine::model::Mounts;
use crate::engine::model::recompute::{Pulled, leaf};
use crate::engine::train::step::{Gradients, Outcome, Trainee};
use crate::engine::vision::classifier::BATCH;
use crate::engine::vision::classify::ranked;
use crate::engine::vision::dataset::Item;
use crate::engine::vision::{Classifier, Head};

/// Pictures as the head is shown them.
pub struct Pictures<'a> {
    pub model: &'a Classifier,
    pub items: Vec<&'a Item>,
    /// What the untouched network sees, `[n, width]`, mirrored pictures after the others, where it is all that is needed;
    /// else pictures are read anew for each batch, since a data set need not fit into memory.
    seen: Option<Tensor<2>>,
}

/// What was measured on pictures that nothing was learnt from.
pub struct Measured {
    pub loss: f32,
    /// The class each picture was taken for.
    pub taken_for: Vec<usize>,
}

impl<'a> Pictures<'a> {
    pub fn new(model: &'a Classifier, items: Vec<&'a Item>) -> Self {
        Self { model, items, seen: None }
    }

    /// Looks at all of them once.
    pub fn look(&mut self, mirrored: bool, watch: &mut Watch<'_>) -> Result<()> {
        let ways: &[bool] = if mirrored { &[false, true] } else { &[false] };
        let all: Vec<_> = ways.iter().flat_map(|&way| self.items.iter().map(move |item| (&item.path, way))).collect();
        watch(Event::Stage { name: "looking".into(), total: all.len() })?;
        let mut seen = Vec::new();
        for (i, some) in all.chunks(BATCH).enumerate() {
            let x = self.model.preparation.batch(some, &self.model.device)?;
            seen.push(self.model.features(x, &Mounts::none()));
            watch(Event::Progress { done: BATCH * i + some.len(), total: all.len() })?;
        }
        self.seen = Some(Tensor::cat(seen, 0));
        Ok(())
    }

    /// What the head reads of some of them, each mirrored or not.
    fn features(&self, some: &[(usize, bool)], mounts: &Mounts) -> Result<Tensor<2>> {
        let Some(seen) = &self.seen else {
            let pictures: Vec<_> = some.iter().map(|&(i, mirrored)| (&self.items[i].path, mirrored)).collect();
            return Ok(self.model.features(self.model.preparation.batch(&pictures, &self.model.device)?, mounts));
        };
        let row = |&(i, mirrored): &(usize, bool)| (i + if mirrored { self.items.len() } else { 0 }) as i32;
        let rows: Vec<i32> = some.iter().map(row).collect();
        Ok(seen.clone().select(0, Tensor::from_data(TensorData::new(rows, [some.len()]), &self.model.device)))
    }

    /// Sum over `some` of the cross-entropy, `[1]`.
    fn loss(&self, some: &[(usize, bool)], logits: Tensor<2>) -> Tensor<1> {
        let [n, classes] = logits.dims();
        let mut minus = vec![0.0_f32; n * classes];
        some.iter().enumerate().for_each(|(row, &(i, _))| minus[row * classes + self.items[i].class] = -1.0);
        let minus = Tensor::<2>::from_data(TensorData::new(minus, [n, classes]), &self.model.device);
        (activation::log_softmax(logits, 1) * minus).sum()
    }

    /// Loss and gradients of a batch.
    pub fn gradients(&self, trainee: &Trainee, batch: &[(usize, bool)]) -> Result<Outcome> {
        let leaves: Vec<Tensor<2>> = trainee
            .parameters
            .iter()
            .map(|parameter| if parameter.awake { leaf(parameter.value.clone()) } else { parameter.value.clone() })
            .collect();
        let mounts = trainee.mounts(&leaves);
        let logits = head(&leaves).forward(self.features(batch, &mounts)?);
        let loss = self.loss(batch, logits) / batch.len() as f32;
        let mut pulled = Pulled::new(&leaves);
        pulled.pull(loss.clone(), mounts.take_charges(), &leaves);
        let Pulled { leaves, charged } = pulled;
        Ok(Outcome { loss: loss.inner(), prior: None, charged, gradients: Gradients::new(leaves) })
    }

    /// Shows it all of them as they are.
    pub fn measure(&self, trainee: &Trainee) -> Result<Measured> {
        let (mounts, head) = (trainee.at_rest(), head(&trainee.values()));
        let all: Vec<_> = (0..self.items.len()).map(|i| (i, false)).collect();
        let mut measured = Measured { loss: 0.0, taken_for: Vec::new() };
        for some in all.chunks(BATCH) {
            let logits = head.forward(self.features(some, &mounts)?);
            measured.loss += read(self.loss(some, logits.clone()))?[0] / all.len() as f32;
            let [_, classes] = logits.dims();
            for logits in read(logits)?.chunks(classes) {
                measured.taken_for.push(ranked(logits)?[0]);
            }
        }
        Ok(measured)
    }
}

/// Weight and bias are the first two parameters.
pub fn head(values: &[Tensor<2>]) -> Head {
    Head { weight_oi: values[0].clone(), bias: values[1].clone() }
}
