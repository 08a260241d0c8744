//! What other tools call a layer: paths with dots in both layouts, and the shape of its weight.

use std::collections::BTreeMap;

use crate::engine::io::detect::Family;
use crate::engine::io::dotted::dotted;
use crate::engine::io::ldm::{self, Blocks, Names};
use crate::engine::io::lora_file::{Difference, LoraFile, LoraLayer};
use crate::engine::io::names::{self, KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2, KOHYA_UNET};
use crate::engine::{Error, Result};

/// Names and shapes of a family's layers, or of one model's.
pub struct Paths {
    unet: Names,
    family: Option<Family>,
    /// `[out, channels, kh, kw]` or `[out, in]` of each layer, where a model says it.
    shapes: BTreeMap<String, Vec<usize>>,
}

/// A network that adapters change: of a model's networks, all but the autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Adaptable {
    Unet,
    Text,
    SecondText,
}

impl Adaptable {
    pub const ALL: [Self; 3] = [Self::Unet, Self::Text, Self::SecondText];

    /// Before the keys in diffusers' files, and the folder that PEFT's adapter of it lies in.
    pub fn in_diffusers(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Text => "text_encoder",
            Self::SecondText => "text_encoder_2",
        }
    }
}

impl Paths {
    pub fn new(blocks: &Blocks, family: Option<Family>, shapes: BTreeMap<String, Vec<usize>>) -> Self {
        Self { unet: ldm::unet(blocks), family, shapes }
    }

    /// Those of a family; of SD 1.x where none is told.
    pub fn of(family: Option<Family>) -> Self {
        let (down, up) = match family == Some(Family::Sdxl) {
            true => (vec![false, true, true], vec![true, true, false]),
            false => (vec![true, true, true, false], vec![false, true, true, true]),
        };
        Self::new(&Blocks { layers: 2, down, up }, family, BTreeMap::new())
    }

    /// The network of a layer, and its path there in diffusers' or transformers' layout.
    pub fn ours(&self, module: &str) -> (Adaptable, String) {
        let (network, path) = split(module);
        let renamed = (network == Adaptable::Unet).then(|| self.unet.ours(&path)).flatten();
        (network, renamed.unwrap_or(path))
    }

    /// The same in LDM's layout; text encoders have one layout.
    pub fn ldm(&self, module: &str) -> (Adaptable, String) {
        let (network, path) = self.ours(module);
        let renamed = (network == Adaptable::Unet).then(|| self.unet.ldm(&path)).flatten();
        (network, renamed.unwrap_or(path))
    }

    /// kohya's name of a layer that a file calls by either layout's; what is of no model of pictures keeps its name.
    pub fn kohya(&self, module: &str) -> String {
        if !module.starts_with(KOHYA_UNET) && !names::is_text(module) {
            return module.to_owned();
        }
        // kohya names the layers of SDXL's denoiser as LDM does.
        let is_xl = self.family == Some(Family::Sdxl);
        let (network, path) = if is_xl { self.ldm(module) } else { self.ours(module) };
        let prefix = match (network, is_xl) {
            (Adaptable::Unet, _) => KOHYA_UNET,
            (Adaptable::Text, false) => KOHYA_TEXT,
            (Adaptable::Text, true) => KOHYA_TEXT_1,
            (Adaptable::SecondText, _) => KOHYA_TEXT_2,
        };
        names::flat(prefix, &path)
    }

    /// Gives every layer the name that kohya has for it. A layer that the file holds under two names is refused.
    pub fn rename(&self, file: &mut LoraFile) -> Result<()> {
        fn renamed<T>(map: &mut BTreeMap<String, T>, name: impl Fn(&str) -> String) -> Result<()> {
            for (module, layer) in std::mem::take(map) {
                if map.insert(name(&module), layer).is_some() {
                    let what = format!("The file holds the layer {module} twice, under the names of two tools");
                    return Err(Error::new(what, "Export it again in one spelling"));
                }
            }
            Ok(())
        }
        renamed(&mut file.layers, |module| self.kohya(module))?;
        renamed(&mut file.differences, |module| self.kohya(module))?;
        renamed(&mut file.kroneckers, |module| self.kohya(module))?;
        renamed(&mut file.norms, |module| self.kohya(module))?;
        renamed(&mut file.relatives, |module| self.kohya(module))?;
        renamed(&mut file.own, |module| self.kohya(module))
    }

    /// Gives flattened factors and differences of convolutions their kernels back: LoHa and LoKr forget them.
    pub fn shape(&self, file: &mut LoraFile) {
        for (module, LoraLayer { down_shape, up_shape, rank, .. }) in &mut file.layers {
            if let Some(shape) = self.kernel(module, up_shape[0], down_shape[1..].iter().product())
                && down_shape.len() == 2
            {
                *down_shape = [&[*rank], &shape[1..]].concat();
                *up_shape = vec![shape[0], *rank, 1, 1];
            }
        }
        for (module, factors) in &mut file.kroneckers {
            let flat = factors.shape();
            if let Some(shape) = self.kernel(module, flat[0], flat[1..].iter().product()) {
                factors.set_kernel(&shape);
            }
        }
        for (module, Difference { shape, .. }) in &mut file.differences {
            if let [out, input] = shape[..]
                && let Some(of_layer) = self.kernel(module, out, input)
            {
                *shape = of_layer;
            }
        }
    }

    /// `[out, channels, kh, kw]` of a convolution whose flattened weight is `[out, input]`.
    fn kernel(&self, module: &str, out: usize, input: usize) -> Option<Vec<usize>> {
        if let Some(shape) = self.shapes.get(module) {
            let fits = shape.len() == 4 && shape[0] == out && shape[1..].iter().product::<usize>() == input;
            return fits.then(|| shape.clone());
        }
        let (network, path) = self.ours(module);
        let last = path.rsplit('.').next().unwrap_or_default();
        let wide = ["conv1", "conv2", "conv", "conv_in", "conv_out"].contains(&last) && input.is_multiple_of(9);
        // SD 1.x projects before and after attention by convolutions, the later families by linear layers.
        let is_first = matches!(self.family, None | Some(Family::Sd1));
        let narrow = last == "conv_shortcut" || is_first && ["proj_in", "proj_out"].contains(&last);
        match (network, wide, narrow) {
            (Adaptable::Unet, true, _) => Some(vec![out, input / 9, 3, 3]),
            (Adaptable::Unet, false, true) => Some(vec![out, input, 1, 1]),
            _ => None,
        }
    }
}

fn split(module: &str) -> (Adaptable, String) {
    let starts = [
        (KOHYA_UNET, Adaptable::Unet),
        (KOHYA_TEXT_2, Adaptable::SecondText),
        (KOHYA_TEXT, Adaptable::Text),
        (KOHYA_TEXT_1, Adaptable::Text),
    ];
    let found = starts.iter().find_map(|(start, network)| Some((*network, module.strip_prefix(start)?)));
    let (network, flat) = found.unwrap_or((Adaptable::Unet, module));
    (network, dotted(flat))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::peft;
    use crate::engine::io::safetensors::{Dtype, Tensor, save};

    #[test]
    fn a_layer_is_named_in_both_layouts() {
        let paths = Paths::of(None);
        for (module, ours, ldm) in [
            ("mid_block_attentions_0_proj_in", "mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
            (
                "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
                "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
            ),
            ("up_blocks_1_upsamplers_0_conv", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
            ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            ("conv_in", "conv_in", "input_blocks.0.0"),
        ] {
            let module = format!("{KOHYA_UNET}{module}");
            assert_eq!(paths.ours(&module), (Adaptable::Unet, ours.to_owned()));
            assert_eq!(paths.ldm(&module), (Adaptable::Unet, ldm.to_owned()));
            assert_eq!(paths.kohya(&module), format!("{KOHYA_UNET}{}", ours.replace('.', "_")));
        }
        let text = paths.ours("lora_te_text_model_encoder_layers_0_self_attn_q_proj");
        assert_eq!(text, (Adaptable::Text, "text_model.encoder.layers.0.self_attn.q_proj".to_owned()));
    }

    /// No text encoder tells by itself that there is another beside it.
    #[test]
    fn what_one_of_pefts_folders_tells_holds_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let write = |network: &str, path: &str, width: usize| {
            let tensor = |shape: [usize; 2]| Tensor::new(Dtype::F32, &shape, &vec![0.5; shape[0] * shape[1]]);
            let sides = [("lora_A", tensor([2, width])), ("lora_B", tensor([4, 2]))];
            let key = |side| format!("base_model.model.{path}.{side}.weight");
            let tensors = sides.map(|(side, tensor)| (key(side), tensor)).into();
            save(&folder.path().join(network).join(peft::WEIGHTS), &tensors, &BTreeMap::new()).unwrap();
        };
        write("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj", 768);
        let names = || LoraFile::open(folder.path()).unwrap().layers.into_keys().collect::<Vec<_>>();
        assert_eq!(names(), ["lora_te_text_model_encoder_layers_0_self_attn_q_proj"]);
        write("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 2048);
        let both = [
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
            "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k",
        ];
        assert_eq!(names(), both);
        std::fs::rename(folder.path().join("unet"), folder.path().join("elsewhere")).unwrap();
        write("text_encoder_2", "text_model.encoder.layers.0.self_attn.q_proj", 1280);
        assert_eq!(names(), [both[0], "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"]);
    }
}
