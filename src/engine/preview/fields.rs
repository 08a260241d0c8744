//! What of a picture's making is seldom changed.

use crate::engine::Result;
use crate::engine::diffusion::Schedule;
use crate::engine::diffusion::schedule::Spacing;
use crate::engine::field::{Field, Kind, Settings};
use crate::engine::model::sd::ScheduleConfig;
use crate::engine::preview::Request;

pub const FIELDS: &[Field] = &[
    Field {
        name: "spacing",
        title: "Spacing",
        help: "How the steps are spread over the noise levels; auto is the sampler's own",
        unit: "",
        default: "auto",
        kind: Kind::Choice(&["auto", "leading", "trailing", "linspace"]),
    },
    Field {
        name: "zero_snr",
        title: "Zero terminal SNR",
        help: "Stretches the noise up to noise alone, for models taught so, which predict v, best with trailing spacing; auto is as the model says",
        unit: "",
        default: "auto",
        kind: Kind::Choice(&["auto", "on", "off"]),
    },
    Field {
        name: "guidance_rescale",
        title: "Guidance rescale",
        help: "Takes back the glare that strong guidance brings; 0.7 is usual with zero terminal SNR",
        unit: "",
        default: "0",
        kind: Kind::Number { min: 0.0, max: 1.0 },
    },
];

/// The fields of a request, checked.
pub(super) struct Ways {
    /// `None` is the sampler's own.
    pub spacing: Option<Spacing>,
    zero_snr: Option<bool>,
    /// φ of [`crate::engine::diffusion::guidance::rescaled`].
    pub rescale: f64,
}

impl Ways {
    pub fn of(request: &Request) -> Result<Self> {
        let changes = request.changes.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let settings = Settings::new(FIELDS, changes)?;
        Ok(Self {
            spacing: Spacing::named(settings.text("spacing")),
            zero_snr: match settings.text("zero_snr") {
                "on" => Some(true),
                "off" => Some(false),
                _ => None,
            },
            rescale: settings.number("guidance_rescale"),
        })
    }

    pub fn schedule(&self, config: &ScheduleConfig) -> Result<Schedule> {
        let rescale_betas_zero_snr = self.zero_snr.unwrap_or(config.rescale_betas_zero_snr);
        Schedule::new(&ScheduleConfig { rescale_betas_zero_snr, ..config.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(changes: &[(&str, &str)]) -> Result<Ways> {
        let changes = changes.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Ways::of(&Request { changes, ..Request::default() })
    }

    #[test]
    fn every_spacing_has_its_name() {
        let Kind::Choice(names) = FIELDS[0].kind else { panic!("spacing is a choice") };
        let found: Vec<_> = names.iter().filter_map(|name| Spacing::named(name).map(|_| *name)).collect();
        assert_eq!(found, Spacing::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        assert_eq!(ways(&[("spacing", "trailing")]).unwrap().spacing, Some(Spacing::Trailing));
        assert_eq!(ways(&[]).unwrap().spacing, None);
        assert!(ways(&[("spacing", "wide")]).is_err() && ways(&[("guidance_rescale", "2")]).is_err());
    }

    #[test]
    fn zero_snr_is_the_models_unless_it_is_said() {
        let v = |rescale_betas_zero_snr| ScheduleConfig {
            prediction_type: "v_prediction".into(),
            rescale_betas_zero_snr,
            ..ScheduleConfig::default()
        };
        for (said, config, expected) in
            [("auto", true, true), ("auto", false, false), ("on", false, true), ("off", true, false)]
        {
            let schedule = ways(&[("zero_snr", said)]).unwrap().schedule(&v(config)).unwrap();
            assert_eq!(schedule.sigma(999.0) > 4000.0, expected, "{said} {config}");
        }
        assert!(ways(&[("zero_snr", "on")]).unwrap().schedule(&ScheduleConfig::default()).is_err());
    }
}
