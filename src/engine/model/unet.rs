//! The denoiser (diffusers `UNet2DConditionModel`, the shapes of SD 1.x, 2.x and SDXL): any number of levels, channels, layers and heads.

mod config;

use std::convert::Infallible;
use std::ops::RangeFrom;

use burn::tensor::{Device, Tensor, TensorData, activation};

use crate::engine::io::Checkpoint;
use crate::engine::model::blocks::{Conv, ConvShape, Linear, Norm, attention, timestep_embedding, upsample};
use crate::engine::model::loader::{Loader, Scope};
use crate::engine::model::residual::Resnet;
use crate::engine::model::{Context, Framing, Hold, Mounts, Part, Table};
use crate::engine::ops::{Then, geglu};
use crate::engine::{Error, Result};

pub use config::{Config, PerBlock, SDXL_EMBED, SIZES};

/// Most latent pixels of a picture: 1448×1448 in Stable Diffusion. Attention holds a band of its scores at a time, but its
/// work still grows with the square, and a failed allocation of the rest ends the program without a sentence.
pub const MOST_PIXELS: usize = 32_768;

#[derive(Debug)]
pub struct Unet {
    pub config: Config,
    /// How many layers read the text, 16 in Stable Diffusion 1.x.
    pub cross_attentions: usize,
    time1: Linear,
    time2: Linear,
    added: Option<(Linear, Linear)>,
    conv_in: Conv,
    down: Vec<Stage>,
    middle: (Resnet, Transformer, Resnet),
    up: Vec<Stage>,
    norm_out: Norm,
    conv_out: Conv,
}

/// One level of the way down or up.
#[derive(Debug)]
struct Stage {
    resnets: Vec<Resnet>,
    /// Empty, or one for each resnet.
    transformers: Vec<Transformer>,
    /// Halves or doubles height and width; `None` on the last level.
    resample: Option<Conv>,
}

#[derive(Debug)]
struct Transformer {
    norm: Norm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
    groups: usize,
}

#[derive(Debug)]
struct TransformerBlock {
    /// Its number among those that read the text, in the order down, middle, up.
    number: usize,
    norms: [Norm; 3],
    self_attention: Attention,
    cross_attention: Attention,
    /// GEGLU: value and gate in one product.
    ff_in: Linear,
    ff_out: Linear,
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
}

impl Unet {
    pub fn load(config: Config, file: &Checkpoint, hold: Hold<'_>, table: Table) -> Result<(Self, Table)> {
        config.check().map_err(|why| {
            Error::new(
                format!("This denoiser cannot be used: {why}"),
                "Choose a model of the family of SD 1.x, SD 2.x or SDXL",
            )
            .at(file.path())
        })?;
        let loader = Loader::new(file, |name| Some(name.to_owned()), hold, Part::Unet, table);
        let root = loader.root();
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let time = first * 4;
        let levels = channels.len();
        let resnet = |scope: &Scope<'_>, input, out| {
            Resnet::load(scope, input, out, Some(time), config.norm_num_groups, config.norm_eps)
        };

        let mut numbers = 0..;
        let mut skips = vec![first];
        let mut input = first;
        let mut down = Vec::new();
        for (level, &out) in channels.iter().enumerate() {
            let scope = root.sub(format!("down_blocks.{level}"));
            let cross = config.down_block_types[level].starts_with("Cross");
            let mut stage = Stage { resnets: Vec::new(), transformers: Vec::new(), resample: None };
            for j in 0..config.layers_per_block {
                stage.resnets.push(resnet(&scope.sub(format!("resnets.{j}")), input, out));
                if cross {
                    stage.transformers.push(Transformer::load(
                        &scope.sub(format!("attentions.{j}")),
                        out,
                        level,
                        &config,
                        &mut numbers,
                    ));
                }
                input = out;
                skips.push(out);
            }
            if level + 1 < levels {
                stage.resample = Some(scope.conv("downsamplers.0.conv", out, out, ConvShape::HALF3));
                skips.push(out);
            }
            down.push(stage);
        }

        let scope = root.sub("mid_block");
        let middle = (
            resnet(&scope.sub("resnets.0"), last, last),
            Transformer::load(&scope.sub("attentions.0"), last, levels - 1, &config, &mut numbers),
            resnet(&scope.sub("resnets.1"), last, last),
        );

        let mut up = Vec::new();
        for index in 0..levels {
            let level = levels - 1 - index;
            let out = channels[level];
            let scope = root.sub(format!("up_blocks.{index}"));
            let cross = config.up_block_types[index].starts_with("Cross");
            let mut stage = Stage { resnets: Vec::new(), transformers: Vec::new(), resample: None };
            for j in 0..=config.layers_per_block {
                let skip = skips.pop().unwrap_or(first);
                stage.resnets.push(resnet(&scope.sub(format!("resnets.{j}")), input + skip, out));
                if cross {
                    stage.transformers.push(Transformer::load(
                        &scope.sub(format!("attentions.{j}")),
                        out,
                        level,
                        &config,
                        &mut numbers,
                    ));
                }
                input = out;
            }
            if index + 1 < levels {
                stage.resample = Some(scope.conv("upsamplers.0.conv", out, out, ConvShape::SAME3));
            }
            up.push(stage);
        }

        let added = config.projection_class_embeddings_input_dim.filter(|_| config.sizes_width().is_some());
        let unet = Self {
            added: added.map(|width| {
                let linear = |name, input| root.linear(name, input, time, true);
                (linear("add_embedding.linear_1", width), linear("add_embedding.linear_2", time))
            }),
            cross_attentions: numbers.start,
            time1: root.linear("time_embedding.linear_1", first, time, true),
            time2: root.linear("time_embedding.linear_2", time, time, true),
            conv_in: root.conv("conv_in", config.in_channels, first, ConvShape::SAME3),
            down,
            middle,
            up,
            norm_out: root.norm("conv_norm_out", first, config.norm_eps),
            conv_out: root.conv("conv_out", first, config.out_channels, ConvShape::SAME3),
            config,
        };
        Ok((unet, loader.finish()?))
    }

    /// What the model predicts (noise or v) for latents `x [b, 4, h, w]` at `timesteps [b]` under `context`.
    pub fn forward(&self, x: Tensor<4>, timesteps: &[f32], context: &Context, mounts: &Mounts) -> Tensor<4> {
        let time = self.time(&self.sinusoids(timesteps, context, &x.device()), context, mounts);
        let Ok(answer) = self.walk(x, &time, context, mounts, |_, _, _| Ok::<(), Infallible>(()));
        answer
    }

    /// From latents to answer. `meet` is told each stretch's input, its skip and the next skip's size before it runs, and
    /// can end the walk.
    pub fn walk<E>(
        &self,
        x: Tensor<4>,
        time: &Tensor<2>,
        context: &Context,
        mounts: &Mounts,
        mut meet: impl FnMut(&Tensor<4>, Option<&Tensor<4>>, [usize; 2]) -> Result<(), E>,
    ) -> Result<Tensor<4>, E> {
        let mut skips: Vec<Tensor<4>> = Vec::new();
        self.stretches().iter().try_fold(x, |x, stretch| {
            let skip = if stretch.joins { skips.pop() } else { None };
            let size = skips.last().map_or([0; 2], |next| {
                let [_, _, h, w] = next.dims();
                [h, w]
            });
            meet(&x, skip.as_ref(), size)?;
            let x = stretch.run(x, skip, size, time, context, mounts);
            if stretch.leaves {
                skips.push(x.clone());
            }
            Ok(x)
        })
    }

    /// What the embedding of timesteps and sizes is made from.
    pub fn sinusoids(&self, timesteps: &[f32], context: &Context, device: &Device) -> Sinusoids {
        let of = |numbers: &[f32], width| {
            let rows = TensorData::new(timestep_embedding(numbers, width), [numbers.len(), width]);
            Tensor::<2>::from_data(rows, device)
        };
        let sizes = self.config.sizes_width().zip(context.pooled()).map(|(width, pooled)| {
            let numbers: Vec<f32> = pooled.framings.iter().flat_map(Framing::numbers).collect();
            of(&numbers, width).reshape([pooled.framings.len(), SIZES * width])
        });
        Sinusoids { times: of(timesteps, self.config.block_out_channels[0]), sizes }
    }

    /// The embedding `[b, 4·channels]` of the timestep, in SDXL with that of pooled text and sizes, behind the SiLU through
    /// which every resnet reads it.
    pub fn time(&self, sinusoids: &Sinusoids, context: &Context, mounts: &Mounts) -> Tensor<2> {
        let embed = |first: &Linear, second: &Linear, x: Tensor<2>| {
            second.forward(activation::silu(first.forward(x, mounts)), mounts)
        };
        let time = embed(&self.time1, &self.time2, sinusoids.times.clone());
        let added = self.added.as_ref().zip(context.pooled()).zip(sinusoids.sizes.clone());
        let time = match added {
            Some((((first, second), pooled), sizes)) => {
                time + embed(first, second, Tensor::cat(vec![pooled.text.clone(), sizes], 1))
            }
            None => time,
        };
        activation::silu(time)
    }

    /// The network between latents and answer, in the order it runs.
    pub fn stretches(&self) -> Vec<Stretch<'_>> {
        let stretch = |work| Stretch { work, joins: false, leaves: false };
        let down = |work| Stretch { leaves: true, ..stretch(work) };
        let mut all = vec![down(Work::Conv(&self.conv_in))];
        for stage in &self.down {
            all.extend(stage.blocks().map(down));
            all.extend(stage.resample.iter().map(|conv| down(Work::Conv(conv))));
        }
        let (resnet1, transformer, resnet2) = &self.middle;
        all.push(stretch(Work::Block(resnet1, Some(transformer))));
        all.push(stretch(Work::Block(resnet2, None)));
        for stage in &self.up {
            all.extend(stage.blocks().map(|work| Stretch { joins: true, ..stretch(work) }));
            all.extend(stage.resample.iter().map(|conv| stretch(Work::Upsample(conv))));
        }
        all.push(stretch(Work::Out(&self.norm_out, self.config.norm_num_groups, &self.conv_out)));
        all
    }
}

/// Sines and cosines of timesteps `[b, channels]` and, in SDXL, of six sizes `[b, 6·width]`.
#[derive(Clone, Debug)]
pub struct Sinusoids {
    times: Tensor<2>,
    sizes: Option<Tensor<2>>,
}

impl Sinusoids {
    #[must_use]
    pub fn map(self, change: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        Self { times: change(self.times), sizes: self.sizes.map(change) }
    }
}

/// A piece of the network that has one input besides its skip, and one output.
pub struct Stretch<'a> {
    work: Work<'a>,
    /// Takes the youngest skip.
    pub joins: bool,
    /// Leaves its answer as a skip.
    pub leaves: bool,
}

enum Work<'a> {
    Conv(&'a Conv),
    Block(&'a Resnet, Option<&'a Transformer>),
    Upsample(&'a Conv),
    Out(&'a Norm, usize, &'a Conv),
}

impl Stretch<'_> {
    /// `size` is `[height, width]` of the skip that comes next: an odd size halves upwards, so what is doubled returns to
    /// that, not to twice its own.
    pub fn run(
        &self,
        x: Tensor<4>,
        skip: Option<Tensor<4>>,
        size: [usize; 2],
        time: &Tensor<2>,
        context: &Context,
        mounts: &Mounts,
    ) -> Tensor<4> {
        let x = match skip {
            Some(skip) => Tensor::cat(vec![x, skip], 1),
            None => x,
        };
        match &self.work {
            Work::Conv(conv) => conv.forward(x, mounts),
            Work::Block(resnet, transformer) => {
                let x = resnet.forward(x, Some(time), mounts);
                match transformer {
                    Some(transformer) => transformer.forward(x, context, mounts),
                    None => x,
                }
            }
            Work::Upsample(conv) => conv.forward(upsample(x, size), mounts),
            Work::Out(norm, groups, conv) => conv.forward(norm.group(x, *groups, Then::Silu), mounts),
        }
    }
}

impl Stage {
    fn blocks(&self) -> impl Iterator<Item = Work<'_>> {
        self.resnets.iter().enumerate().map(|(j, resnet)| Work::Block(resnet, self.transformers.get(j)))
    }
}

impl Transformer {
    fn load(scope: &Scope<'_>, channels: usize, level: usize, config: &Config, numbers: &mut RangeFrom<usize>) -> Self {
        let projection = |name| match config.use_linear_projection {
            true => scope.linear(name, channels, channels, true),
            false => scope.linear_from_conv(name, channels, channels),
        };
        Self {
            // diffusers fixes this epsilon.
            norm: scope.norm("norm", channels, 1e-6),
            proj_in: projection("proj_in"),
            blocks: (0..config.transformer_layers_per_block.at(level))
                .zip(numbers)
                .map(|(i, number)| {
                    TransformerBlock::load(
                        &scope.sub(format!("transformer_blocks.{i}")),
                        number,
                        channels,
                        config.heads(level),
                        config.cross_attention_dim,
                    )
                })
                .collect(),
            proj_out: projection("proj_out"),
            groups: config.norm_num_groups,
        }
    }

    fn forward(&self, x: Tensor<4>, context: &Context, mounts: &Mounts) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let tokens = self.norm.group(x.clone(), self.groups, Then::Nothing).reshape([b, c, h * w]).swap_dims(1, 2);
        let tokens = self.proj_in.forward(tokens, mounts);
        let tokens = self.blocks.iter().fold(tokens, |tokens, block| block.forward(tokens, context, mounts));
        let tokens = self.proj_out.forward(tokens, mounts);
        tokens.swap_dims(1, 2).reshape([b, c, h, w]) + x
    }
}

impl TransformerBlock {
    fn load(scope: &Scope<'_>, number: usize, width: usize, heads: usize, context: usize) -> Self {
        Self {
            number,
            norms: ["norm1", "norm2", "norm3"].map(|name| scope.norm(name, width, 1e-5)),
            self_attention: Attention::load(&scope.sub("attn1"), width, width, heads),
            cross_attention: Attention::load(&scope.sub("attn2"), width, context, heads),
            ff_in: scope.linear("ff.net.0.proj", width, width * 8, true),
            ff_out: scope.linear("ff.net.2", width * 4, width, true),
        }
    }

    fn forward(&self, x: Tensor<3>, context: &Context, mounts: &Mounts) -> Tensor<3> {
        let [norm1, norm2, norm3] = &self.norms;
        let h = norm1.layer(x.clone());
        let x = self.self_attention.forward(&h, &h, mounts) + x;
        let context = context.at(self.number);
        let x = self.cross_attention.forward(&norm2.layer(x.clone()), context, mounts) + x;
        let gated = geglu(self.ff_in.forward(norm3.layer(x.clone()), mounts));
        self.ff_out.forward(gated, mounts) + x
    }
}

impl Attention {
    fn load(scope: &Scope<'_>, width: usize, context: usize, heads: usize) -> Self {
        Self {
            query: scope.linear("to_q", width, width, false),
            key: scope.linear("to_k", context, width, false),
            value: scope.linear("to_v", context, width, false),
            out: scope.linear("to_out.0", width, width, true),
            heads,
        }
    }

    fn forward(&self, x: &Tensor<3>, context: &Tensor<3>, mounts: &Mounts) -> Tensor<3> {
        let q = self.query.forward(x.clone(), mounts);
        let [k, v] = [&self.key, &self.value].map(|linear| linear.forward(context.clone(), mounts));
        self.out.forward(attention(q, k, v, self.heads, None), mounts)
    }
}
