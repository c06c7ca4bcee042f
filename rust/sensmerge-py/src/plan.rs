use pyo3::prelude::*;
use sensmerge_core::error::Result;
use sensmerge_core::plan::{Content, Inputs, Plan, Recipe};
use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::error::{bad_input, to_python};

/// Plan a merge without reading or writing tensor data.
///
/// Args:
///     recipe: The core's recipe as JSON.
///     max_shard_bytes: Upper bound on the size of an output file.
///     models: The base, where the recipe has one, and the experts in its order, where they are open
///         already; the recipe's paths are then not looked at.
///
/// Returns:
///     JSON: every output tensor with its dtype, file and the terms it is made of, the output
///     files, and notes.
///
/// Raises:
///     InputError: The checkpoints cannot be merged as asked.
#[pyfunction]
#[pyo3(signature = (recipe, max_shard_bytes, models = None))]
pub(crate) fn plan(
    py: Python<'_>,
    recipe: &str,
    max_shard_bytes: u64,
    models: Option<Vec<PyRef<'_, Checkpoint>>>,
) -> PyResult<String> {
    let recipe = parse(recipe)?;
    let opened: Option<Vec<_>> =
        models.map(|models| models.iter().map(|model| model.inner()).collect());
    let described = py.detach(|| -> Result<Value> {
        let inputs = match opened {
            Some(opened) => Inputs::new(&recipe, opened)?,
            None => Inputs::open(&recipe)?,
        };
        Ok(describe(&Plan::new(&recipe, &inputs, max_shard_bytes)?))
    });
    Ok(described.map_err(to_python)?.to_string())
}

/// The core's recipe from JSON.
pub(crate) fn parse(recipe: &str) -> PyResult<Recipe> {
    serde_json::from_str(recipe).map_err(|error| bad_input(format!("recipe: {error}")))
}

fn describe(plan: &Plan) -> Value {
    let step = |step: &sensmerge_core::plan::Step| {
        let mut tensor = json!({
            "name": step.name,
            "elements": step.elements,
            "bytes": step.bytes.end - step.bytes.start,
            "file": plan.shards[step.shard].file_name,
        });
        match &step.content {
            Content::Copy(_) => tensor["content"] = json!("copy"),
            Content::Merge(merge) => {
                tensor["content"] = json!("merge");
                tensor["dtype"] = json!(merge.out_dtype);
                tensor["lambda"] = json!(merge.lambda);
                let weights: Vec<f64> = merge.terms.iter().map(|term| term.weight).collect();
                tensor["weights"] = json!(weights);
            }
        }
        tensor
    };
    json!({
        "tensors": plan.steps.iter().map(step).collect::<Vec<_>>(),
        "files": plan.shards.iter().map(|shard| shard.file_name.as_str()).collect::<Vec<_>>(),
        "notes": plan.notes,
    })
}
