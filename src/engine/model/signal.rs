//! What flows through an adapted layer: tokens and pictures, so that a method is written once for both.

use burn::tensor::{Tensor, module};

use crate::engine::model::blocks::{ConvShape, convolve, pointwise};

#[derive(Clone, Debug)]
pub enum Signal {
    /// `[rows, width]`: every token of every picture is a row.
    Tokens(Tensor<2>),
    /// `[batch, channels, height, width]`.
    Picture(Tensor<4>),
}

impl Signal {
    /// Through a weight `[out, in]` as the layer at hand would: a matrix product, or a convolution of its shape.
    #[must_use]
    pub fn through(self, weight_oi: Tensor<2>, bias: Option<Tensor<1>>, shape: Option<ConvShape>) -> Self {
        match (self, shape) {
            (Self::Picture(x), Some(shape)) => {
                let [out, _] = weight_oi.dims();
                let ([kh, kw], channels) = (shape.kernel, x.dims()[1]);
                Self::Picture(convolve(x, weight_oi.reshape([out, channels, kh, kw]), bias, shape))
            }
            (Self::Picture(x), None) => Self::Picture(pointwise(x, weight_oi, bias)),
            (Self::Tokens(x), _) => Self::Tokens(module::linear(x, weight_oi.transpose(), bias)),
        }
    }

    /// The channels of each place through `weight_oi [out, channels]`.
    #[must_use]
    pub fn mix(self, weight_oi: Tensor<2>) -> Self {
        match self {
            Self::Tokens(x) => Self::Tokens(x.matmul(weight_oi.transpose())),
            Self::Picture(x) => Self::Picture(pointwise(x, weight_oi, None)),
        }
    }

    /// Each channel times its own factor.
    #[must_use]
    pub fn scaled(self, channels: Tensor<1>) -> Self {
        let [n] = channels.dims();
        match self {
            Self::Tokens(x) => Self::Tokens(x * channels.reshape([1, n])),
            Self::Picture(x) => Self::Picture(x * channels.reshape([1, n, 1, 1])),
        }
    }

    /// Each channel plus its own offset.
    #[must_use]
    pub fn offset(self, channels: Tensor<1>) -> Self {
        let [n] = channels.dims();
        match self {
            Self::Tokens(x) => Self::Tokens(x + channels.reshape([1, n])),
            Self::Picture(x) => Self::Picture(x + channels.reshape([1, n, 1, 1])),
        }
    }

    /// A function of the channels of each place: `[places, channels] → [places, other channels]`.
    #[must_use]
    pub fn by_place(self, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        match self {
            Self::Tokens(x) => Self::Tokens(f(x)),
            Self::Picture(x) => {
                let [b, c, h, w] = x.dims();
                let y = f(x.permute([0, 2, 3, 1]).reshape([b * h * w, c]));
                let [_, c] = y.dims();
                Self::Picture(y.reshape([b, h, w, c]).permute([0, 3, 1, 2]))
            }
        }
    }

    /// The same numbers, through which no gradient flows.
    #[must_use]
    pub fn constant(self) -> Self {
        match self {
            Self::Tokens(x) => Self::Tokens(x.without_autodiff()),
            Self::Picture(x) => Self::Picture(x.without_autodiff()),
        }
    }

    fn zip(self, other: Self, tokens: fn(Tensor<2>, Tensor<2>) -> Tensor<2>, picture: Pictures) -> Self {
        match (self, other) {
            (Self::Tokens(a), Self::Tokens(b)) => Self::Tokens(tokens(a, b)),
            (Self::Picture(a), Self::Picture(b)) => Self::Picture(picture(a, b)),
            _ => panic!("one layer's signals are all tokens or all pictures"),
        }
    }
}

type Pictures = fn(Tensor<4>, Tensor<4>) -> Tensor<4>;

impl std::ops::Add for Signal {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b, |a, b| a + b)
    }
}

impl std::ops::Sub for Signal {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b, |a, b| a - b)
    }
}

/// Entry by entry.
impl std::ops::Mul for Signal {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b, |a, b| a * b)
    }
}

impl std::ops::Mul<f32> for Signal {
    type Output = Self;

    fn mul(self, by: f32) -> Self {
        match self {
            Self::Tokens(x) => Self::Tokens(x * by),
            Self::Picture(x) => Self::Picture(x * by),
        }
    }
}
