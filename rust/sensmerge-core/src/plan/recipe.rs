//! What to merge, in plain data: the request that a front end fills in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::method::{MethodName, Semantics, Switches};

/// A merge, complete but for the tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The method's name.
    pub method: MethodName,
    /// Whose reading of the method.
    #[serde(default)]
    pub semantics: Semantics,
    /// The base checkpoint: a folder or one safetensors file. Task-vector methods need it.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// The experts, in the order in which terms are summed.
    pub models: Vec<Model>,
    /// The scale λ of the merged task vector.
    #[serde(default = "one")]
    pub lambda: Setting,
    /// Divide the weighted sum; `None` is the method's default.
    #[serde(default)]
    pub normalize: Option<bool>,
    /// Rescale what sparsification leaves; `None` is the method's default.
    #[serde(default)]
    pub rescale: Option<bool>,
    /// Key of the random streams.
    #[serde(default)]
    pub seed: u64,
    /// Dtype of the merged tensors; `None` keeps that of the base (without a base: the first model).
    #[serde(default)]
    pub out_dtype: Option<Float>,
}

/// One expert.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its checkpoint: a folder or one safetensors file.
    pub path: PathBuf,
    /// `w_i`: the recipe's weight times `K·σ_i` where sensitivity is on.
    #[serde(default = "one")]
    pub weight: Setting,
    /// Fraction of entries kept by the drop, or by the trim where there is no drop.
    #[serde(default = "one")]
    pub density: Setting,
    /// Fraction of entries kept by the trim of original `dare_ties`.
    #[serde(default = "one")]
    pub ties_density: Setting,
    /// Tensors that the checkpoint leaves out because another one stands for them, such as a tied
    /// `lm_head.weight` for `model.embed_tokens.weight`.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// Vocabulary tensors of which only as many leading rows are read as the base has.
    #[serde(default)]
    pub leading_rows: Vec<String>,
}

impl Model {
    /// A model at `path` with weight 1 and density 1.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            weight: one(),
            density: one(),
            ties_density: one(),
            aliases: BTreeMap::new(),
            leading_rows: Vec::new(),
        }
    }
}

/// A number for every tensor: one value, and others for layers or single tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The value where no layer matches.
    pub value: f64,
    /// Values by layer or tensor name (`model.layers.0`, `lm_head.weight`); the longest name that
    /// is the tensor's own or an ancestor of it wins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, f64>,
}

impl Setting {
    /// The same value everywhere.
    #[must_use]
    pub fn uniform(value: f64) -> Self {
        Self { value, layers: BTreeMap::new() }
    }

    /// The value for a tensor.
    #[must_use]
    pub fn of(&self, tensor: &str) -> f64 {
        if self.layers.is_empty() {
            return self.value;
        }
        let mut name = tensor;
        loop {
            if let Some(&value) = self.layers.get(name) {
                return value;
            }
            match name.rfind('.') {
                Some(dot) => name = &name[..dot],
                None => return self.value,
            }
        }
    }

    fn values(&self) -> impl Iterator<Item = (Option<&str>, f64)> {
        let by_layer = self.layers.iter().map(|(layer, &value)| (Some(layer.as_str()), value));
        std::iter::once((None, self.value)).chain(by_layer)
    }

    fn check(&self, key: &str, allowed: fn(f64) -> bool, expected: &str) -> Result<()> {
        match self.values().find(|&(_, value)| !allowed(value)) {
            None => Ok(()),
            Some((layer, value)) => {
                let place = layer.map(|layer| format!(" for '{layer}'")).unwrap_or_default();
                Err(Error::setting(key, format!("{value}{place} is not {expected}")))
            }
        }
    }
}

fn one() -> Setting {
    Setting::uniform(1.0)
}

impl Recipe {
    /// The method's switches.
    #[must_use]
    pub fn switches(&self) -> Switches {
        Switches { normalize: self.normalize, rescale: self.rescale }
    }

    /// Refuse numbers that no merge can use.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the key.
    pub fn check(&self) -> Result<()> {
        if self.models.is_empty() {
            return Err(Error::setting("models", "no model to merge; name at least one"));
        }
        self.lambda.check("parameters.lambda", f64::is_finite, "a finite number")?;
        for (index, model) in self.models.iter().enumerate() {
            let key = |name: &str| format!("models[{index}].parameters.{name}");
            model.weight.check(&key("weight"), f64::is_finite, "a finite number")?;
            model.density.check(&key("density"), is_density, DENSITY)?;
            model.ties_density.check(&key("ties_density"), is_density, DENSITY)?;
        }
        Ok(())
    }
}

const DENSITY: &str = "a fraction of entries to keep, above 0 and at most 1";

fn is_density(value: f64) -> bool {
    value > 0.0 && value <= 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_matching_name_wins() {
        let mut setting = Setting::uniform(1.0);
        setting.layers.insert("model.layers.1".into(), 2.0);
        setting.layers.insert("model.layers.1.mlp.up_proj.weight".into(), 3.0);
        assert_eq!(setting.of("model.layers.1.mlp.up_proj.weight"), 3.0);
        assert_eq!(setting.of("model.layers.1.mlp.down_proj.weight"), 2.0);
        assert_eq!(setting.of("model.layers.10.mlp.down_proj.weight"), 1.0);
        assert_eq!(setting.of("lm_head.weight"), 1.0);
    }

    #[test]
    fn unusable_numbers_are_refused_by_key() {
        let recipe = |change: fn(&mut Model)| {
            let mut model = Model::new("expert");
            change(&mut model);
            Recipe {
                method: MethodName::TaskArithmetic,
                semantics: Semantics::Mergekit,
                base: Some("base".into()),
                models: vec![model],
                lambda: one(),
                normalize: None,
                rescale: None,
                seed: 0,
                out_dtype: None,
            }
        };
        let refusal = |change| recipe(change).check().expect_err("refused").to_string();
        assert!(recipe(|_| ()).check().is_ok());
        assert!(
            refusal(|model| model.weight.value = f64::NAN).contains("models[0].parameters.weight")
        );
        assert!(
            refusal(|model| model.density.value = 0.0).contains("models[0].parameters.density")
        );
        assert!(refusal(|model| model.density.value = 1.5).contains("1.5"));
        assert!(
            refusal(|model| {
                model.weight.layers.insert("model.layers.3".into(), f64::INFINITY);
            })
            .contains("'model.layers.3'")
        );
    }
}
