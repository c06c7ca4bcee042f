//! Units of two models that are matched by their weights.

use std::path::Path;

use sensmerge_core::engine::{Monitor, match_units};
use sensmerge_core::manifest::{Level, Order, Portion, Symmetry, View};
use tempfile::tempdir;

use crate::files::{Tensor, f32s, open, write_model};

/// Six neurons of four inputs; the last projection has three outputs.
const UNITS: usize = 6;

fn symmetry() -> Symmetry {
    let portion = |tensor: &str, axis| Portion {
        tensor: tensor.into(),
        axis,
        first: 0,
        count: UNITS,
        level: Level::Units,
    };
    Symmetry {
        units: UNITS,
        members: 0,
        portions: vec![portion("0.up", 0), portion("0.bias", 0), portion("0.down", 1)],
    }
}

/// The neurons `order` of a model whose entries tell every place apart, each of its own size.
fn tensors(prefix: &str, order: &[usize]) -> Vec<Tensor> {
    let entry = |unit: usize, place: usize| ((unit * 17 + place * 5) as f32).sin();
    let up: Vec<f32> =
        order.iter().flat_map(|&unit| (0..4).map(move |at| entry(unit, at))).collect();
    let bias: Vec<f32> = order.iter().map(|&unit| entry(unit, 4)).collect();
    let down: Vec<f32> =
        (0..3).flat_map(|row| order.iter().map(move |&unit| entry(unit, 5 + row))).collect();
    vec![
        f32s(&format!("{prefix}0.up"), &[UNITS, 4], &up),
        f32s(&format!("{prefix}0.bias"), &[UNITS], &bias),
        f32s(&format!("{prefix}0.down"), &[3, UNITS], &down),
    ]
}

fn matched(folder: &Path, threads: usize) -> Order {
    let models = open(&[folder.join("template"), folder.join("model")]).unwrap();
    let [template, model] = &models[..] else { panic!("two are opened") };
    let (template, model) = (View::new(template.clone()), View::new(model.clone()));
    let monitor = Monitor::new();
    let found = match_units(&template, &model, &[symmetry()], Some(threads), &monitor).unwrap();
    let (done, all) = monitor.progress();
    assert_eq!(done, all);
    found.into_iter().next().unwrap()
}

#[test]
fn moved_neurons_are_found() {
    let root = tempdir().unwrap();
    write_model(&root.path().join("template"), &tensors("", &[0, 1, 2, 3, 4, 5]));
    for prefix in ["", "model."] {
        // Whatever stands before the names of the other model.
        write_model(&root.path().join("model"), &tensors(prefix, &[3, 0, 5, 1, 2, 4]));
        for threads in [1, 3] {
            assert_eq!(matched(root.path(), threads).units, [1, 3, 4, 0, 5, 2]);
        }
    }
}

#[test]
fn nothing_moves_where_a_tensor_is_missing_or_of_another_shape() {
    let root = tempdir().unwrap();
    write_model(&root.path().join("template"), &tensors("", &[0, 1, 2, 3, 4, 5]));
    let mut others = tensors("", &[3, 0, 5, 1, 2, 4]);
    let down = others.pop().unwrap();
    write_model(&root.path().join("model"), &others);
    assert_eq!(matched(root.path(), 1), symmetry().unmoved());
    let (name, dtype, _, bytes) = down;
    others.push((name, dtype, vec![UNITS, 3], bytes));
    write_model(&root.path().join("model"), &others);
    assert_eq!(matched(root.path(), 1), symmetry().unmoved());
}
