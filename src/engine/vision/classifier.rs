//! A network that tells what a picture shows, with its head and the names of its classes.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, module};
use serde::Deserialize;

use crate::engine::io::{Checkpoint, Folder};
use crate::engine::model::loader::{Loader, Scope};
use crate::engine::model::mobilenet::{self, MobileNet};
use crate::engine::model::resnet::{self, ResNet};
use crate::engine::model::sd::TEXT_WEIGHTS;
use crate::engine::model::vit::{self, Vit};
use crate::engine::model::{Hold, Layer, Mounts, Part, Table, Weight};
use crate::engine::vision::prepare::{Preparation, Resize};
use crate::engine::{Error, Result, words};

/// The classifier that is part of the program.
pub const EMBEDDED: &str = "mobilenet";

/// torchvision's names of ImageNet's classes, one a line.
const IMAGENET: &str = include_str!("../../../assets/imagenet_classes.txt");

/// Pictures that are looked at together.
pub const BATCH: usize = 8;

pub struct Classifier {
    pub name: String,
    /// SHA-256 of its tensors.
    pub hash: String,
    network: Network,
    pub head: Head,
    /// The head's name in the model's file.
    pub head_path: &'static str,
    /// One for each row of the head.
    pub classes: Vec<String>,
    pub preparation: Preparation,
    /// Which layers adapters usually sit on.
    pub usual_targets: &'static str,
    pub layers: Vec<Layer>,
    pub weights: Vec<Weight>,
    pub device: Device,
}

enum Network {
    Vit(Box<Vit>),
    ResNet(Box<ResNet>),
    MobileNet(Box<MobileNet>),
}

/// The last layer: features `[n, width]` → one number for each class, `[n, classes]`.
#[derive(Clone, Debug)]
pub struct Head {
    pub weight_oi: Tensor<2>,
    /// `[1, classes]`.
    pub bias: Tensor<2>,
}

/// What every `config.json` of a classifier says.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    id2label: BTreeMap<String, String>,
}

impl Head {
    fn load(scope: &Scope<'_>, path: &str, classes: usize, width: usize) -> Self {
        let scope = scope.sub(path);
        Self { weight_oi: scope.tensor("weight", [classes, width]), bias: scope.tensor("bias", [1, classes]) }
    }

    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        module::linear(features, self.weight_oi.clone().transpose(), None) + self.bias.clone()
    }
}

impl Classifier {
    /// `mobilenet`, a folder in Hugging Face layout (ViT, ResNet), or a file of torchvision's `mobilenet_v2`.
    pub fn open(name: &str, device: &Device) -> Result<Self> {
        let path = Path::new(name);
        if name == EMBEDDED {
            return Self::mobilenet(name.into(), &mobilenet::embedded()?, device);
        }
        if path.is_file() {
            return Self::mobilenet(words::stem(path), &Checkpoint::open(path)?, device);
        }
        let folder = Folder::Disk(path.into());
        if !folder.has("config.json") {
            return Err(unknown("There is no image classifier here").at(path));
        }
        let config: Config = folder.json("config.json")?;
        let name = path.file_name().map_or_else(|| name.to_owned(), |name| name.to_string_lossy().into_owned());
        let file = || folder.checkpoint(".", TEXT_WEIGHTS);
        let model = match config.model_type.as_str() {
            "vit" => Self::vit(&folder, name, &file()?, device),
            "resnet" => Self::resnet(&folder, name, &file()?, device),
            "" => Err(unknown("This folder is not an image classifier")),
            other => Err(unknown(&format!("This is a model of the kind “{other}”"))),
        };
        let mut model = model.map_err(|error| error.at(path))?;
        for (i, class) in model.classes.iter_mut().enumerate() {
            if let Some(label) = config.id2label.get(&i.to_string()) {
                class.clone_from(label);
            }
        }
        Ok(model)
    }

    fn mobilenet(name: String, file: &Checkpoint, device: &Device) -> Result<Self> {
        if !file.entries().contains_key("features.0.0.weight") {
            return Err(unknown("This file is not an image classifier").at(file.path()));
        }
        let load = |scope: &Scope<'_>| Network::MobileNet(Box::new(MobileNet::of(scope)));
        let whole =
            Self::load(name, file, device, ("classifier.1", mobilenet::FEATURES), Preparation::torchvision(), load)?;
        let imagenet: Vec<String> = IMAGENET.lines().map(str::to_owned).collect();
        let known = whole.classes.len() == imagenet.len();
        Ok(Self { classes: if known { imagenet } else { whole.classes }, ..whole })
    }

    fn vit(folder: &Folder, name: String, file: &Checkpoint, device: &Device) -> Result<Self> {
        let config: vit::Config = folder.json("config.json")?;
        config.check()?;
        let preparation = Preparation::read(folder, Preparation::vit(config.image_size))?;
        if preparation.resize != Resize::Exact([config.image_size; 2]) {
            return Err(Error::new(
                format!("The model looks at pictures of {0}×{0}, and its preprocessor makes others", config.image_size),
                "Check image_size in config.json and size in preprocessor_config.json",
            ));
        }
        let load = |scope: &Scope<'_>| Network::Vit(Box::new(Vit::load(&config, &scope.sub("vit"))));
        let whole = Self::load(name, file, device, ("classifier", config.hidden_size), preparation, load)?;
        // Every linear layer, as usual for transformers; not the convolution that cuts the patches.
        Ok(Self { usual_targets: "*.attention.*,*.dense", ..whole })
    }

    fn resnet(folder: &Folder, name: String, file: &Checkpoint, device: &Device) -> Result<Self> {
        let config: resnet::Config = folder.json("config.json")?;
        config.check()?;
        let preparation = Preparation::read(folder, Preparation::resnet())?;
        let load = |scope: &Scope<'_>| Network::ResNet(Box::new(ResNet::load(&config, &scope.sub("resnet"))));
        Self::load(name, file, device, ("classifier.1", config.width()), preparation, load)
    }

    /// `head` is its name and the width of what it reads.
    fn load(
        name: String,
        file: &Checkpoint,
        device: &Device,
        head: (&'static str, usize),
        preparation: Preparation,
        network: impl FnOnce(&Scope<'_>) -> Network,
    ) -> Result<Self> {
        let (head_path, width) = head;
        // Beside the classifier, transformers may store a pooler that it does not use.
        let ours = |name: &str| mobilenet::weight(name).filter(|name| !name.starts_with("vit.pooler."));
        let classes = file.shape(&format!("{head_path}.weight"))?.first().copied().unwrap_or(0);
        let loader = Loader::new(file, ours, Hold::wide(device), Part::Vision, Table::default());
        let network = network(&loader.root());
        let head = Head::load(&loader.root(), head_path, classes, width);
        let Table { layers, weights } = loader.finish()?;
        Ok(Self {
            name,
            hash: file.tensor_hash(),
            network,
            head,
            head_path,
            classes: (0..classes).map(|i| format!("LABEL_{i}")).collect(),
            preparation,
            usual_targets: "*",
            layers,
            weights,
            device: device.clone(),
        })
    }

    /// Width of the features.
    pub fn width(&self) -> usize {
        self.head.weight_oi.dims()[1]
    }

    /// RGB `[n, 3, h, w]`, normalised → what the head reads, `[n, width]`.
    pub fn features(&self, x: Tensor<4>, mounts: &Mounts) -> Tensor<2> {
        match &self.network {
            Network::Vit(vit) => vit.features(x, mounts),
            Network::ResNet(resnet) => resnet.features(x, mounts),
            Network::MobileNet(mobilenet) => mobilenet.pooled(x, mounts),
        }
    }
}

fn unknown(what: &str) -> Error {
    let advice = "Name a folder in Hugging Face layout (ViT or ResNet with config.json and model.safetensors), a file of \
                  torchvision's mobilenet_v2, or `mobilenet` for the one that comes with the program";
    Error::new(what, advice)
}
