//! Prompts → text as the denoiser reads it.

use burn::tensor::{Tensor, TensorData};

use crate::engine::model::chunks::{Chunked, Prompt};
use crate::engine::model::sd::Second;
use crate::engine::model::tokenizer::Encoded;
use crate::engine::model::{Context, Mounts, StableDiffusion};

impl StableDiffusion {
    /// Prompts of any length, with weights → what the denoiser reads, `[b, chunks·77, width]` for each of its layers.
    pub fn read(&self, prompts: &[Prompt], words: &[Tensor<3>], clip_skip: usize, mounts: &Mounts) -> Context {
        let chunked = Chunked::new(prompts, &self.tokenizer);
        let widths: Vec<usize> = self.texts().map(|text| text.config.hidden_size).collect();
        let context = self.context(&chunked.rows(), words, clip_skip, mounts).pooled_rows(&chunked.firsts());
        context.map(|z| chunked.join(z, &widths))
    }

    /// Prompts → context `[b, 77, width]`; marked positions take their vector from `vectors` (one `[n, width]` a word).
    pub fn condition(&self, prompts: &[Encoded], vectors: &[Tensor<2>], mounts: &Mounts) -> Tensor<3> {
        self.condition_at(prompts, vectors, 1, mounts)
    }

    /// The same of the text encoder's layer that `clip_skip` counts from the end.
    pub fn condition_at(
        &self,
        prompts: &[Encoded],
        vectors: &[Tensor<2>],
        clip_skip: usize,
        mounts: &Mounts,
    ) -> Tensor<3> {
        self.encode(prompts, vectors, clip_skip, mounts).0
    }

    /// The same, and in SDXL the prompts summed up `[b, width]`. A word's vectors are those for each text encoder side by
    /// side.
    pub(super) fn encode(
        &self,
        prompts: &[Encoded],
        vectors: &[Tensor<2>],
        clip_skip: usize,
        mounts: &Mounts,
    ) -> (Tensor<3>, Option<Tensor<2>>) {
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let Some(Second { encoder, pad }) = &self.second else {
            let embedded = Self::place(self.text.embed(&ids), prompts, vectors);
            return (self.text.forward(embedded, clip_skip, mounts), None);
        };
        let [first, second] = [self.text.config.hidden_size, encoder.config.hidden_size];
        let part = |start: usize, width: usize| {
            vectors.iter().map(|word| word.clone().narrow(1, start, width)).collect::<Vec<_>>()
        };
        let embedded = Self::place(self.text.embed(&ids), prompts, &part(0, first));
        let small = self.text.forward(embedded, clip_skip, mounts);
        let filled: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.filled(*pad)).collect();
        let ends: Vec<usize> = prompts.iter().map(|prompt| prompt.end).collect();
        let embedded = Self::place(encoder.embed(&filled), prompts, &part(first, second));
        let (large, pooled) = encoder.forward_pooled(embedded, &ends, clip_skip, mounts);
        (Tensor::cat(vec![small, large], 2), pooled)
    }

    /// Replaces the rows at marked positions. A product with a selection matrix, so that gradients reach the vectors.
    fn place(embedded: Tensor<3>, prompts: &[Encoded], vectors: &[Tensor<2>]) -> Tensor<3> {
        if prompts.iter().all(|prompt| prompt.marks.is_empty()) {
            return embedded;
        }
        let [b, n, width] = embedded.dims();
        let starts: Vec<usize> =
            vectors.iter().scan(0, |start, v| Some(std::mem::replace(start, *start + v.dims()[0]))).collect();
        let total: usize = vectors.iter().map(|v| v.dims()[0]).sum();
        let mut select = vec![0.0_f32; b * n * total];
        let mut keep = vec![1.0_f32; b * n];
        for (row, prompt) in prompts.iter().enumerate() {
            for mark in &prompt.marks {
                let position = row * n + mark.position;
                keep[position] = 0.0;
                select[position * total + starts[mark.word] + mark.vector] = 1.0;
            }
        }
        let device = embedded.device();
        let keep = Tensor::<3>::from_data(TensorData::new(keep, [b, n, 1]), &device);
        let select = Tensor::<2>::from_data(TensorData::new(select, [b * n, total]), &device);
        let placed = select.matmul(Tensor::cat(vectors.to_vec(), 0)).reshape([b, n, width]);
        embedded * keep + placed
    }
}
