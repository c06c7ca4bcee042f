//! Rows that are chosen from several models, compared with rows that are picked by hand.

use std::sync::Arc;

use proptest::prelude::*;
use sensmerge_core::Result;
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
use sensmerge_core::manifest::{Builder, Content, Manifest, Run, Selection, Source, View};
use tempfile::{TempDir, tempdir};

use crate::files::{f32s, open, plan, values, write_model};

const COLUMNS: usize = 300;

/// The entries of a matrix that tells every place apart.
fn matrix(model: usize, rows: usize) -> Vec<f32> {
    (0..rows * COLUMNS).map(|place| (model * 1_000_000 + place) as f32 / 8.0).collect()
}

/// Models whose embeddings have so many rows.
fn models(rows: &[usize]) -> (TempDir, Vec<Vec<f32>>) {
    let root = tempdir().unwrap();
    let entries: Vec<Vec<f32>> =
        rows.iter().enumerate().map(|(model, &rows)| matrix(model, rows)).collect();
    for (model, (&rows, entries)) in rows.iter().zip(&entries).enumerate() {
        let tensor = f32s("embed.w", &[rows, COLUMNS], entries);
        write_model(&root.path().join(format!("m{model}")), &[tensor]);
    }
    (root, entries)
}

/// The plan of the mean of all models, each with its own selection of rows.
fn planned(root: &TempDir, selections: &[Selection]) -> Result<(Manifest, Inputs)> {
    let paths: Vec<_> =
        (0..selections.len()).map(|model| root.path().join(format!("m{model}"))).collect();
    let builder = Builder::new("linear").numbers("weight", &vec![1.0; selections.len()]);
    plan(builder, None, &open(&paths)?, |place, view: View| {
        view.rows("embed.w", Arc::new(selections[place].clone()))
    })
}

fn merged(root: &TempDir, selections: &[Selection]) -> Vec<f32> {
    let (manifest, inputs) = planned(root, selections).unwrap();
    let manifest = Manifest::from_json(&manifest.to_json().unwrap()).unwrap();
    let out = root.path().join("out");
    execute(&manifest, &inputs, &out, &[], &[], &Options::default(), &Monitor::new()).unwrap();
    values(&Checkpoint::open(&out).unwrap(), "embed.w")
}

fn refusal(rows: &[usize], selections: &[Selection]) -> String {
    let (root, _) = models(rows);
    planned(&root, selections).expect_err("refused").to_string()
}

fn run(of: usize, first: usize, count: usize) -> Run {
    Run { of, first, count }
}

fn row(entries: &[f32], index: usize) -> &[f32] {
    &entries[index * COLUMNS..(index + 1) * COLUMNS]
}

/// The mean of rows, computed in float64.
fn mean(rows: &[&[f32]]) -> Vec<f32> {
    let of_column = |column: usize| {
        let sum: f64 = rows.iter().map(|row| f64::from(row[column])).sum();
        (sum / rows.len() as f64) as f32
    };
    (0..COLUMNS).map(of_column).collect()
}

#[test]
fn rows_are_those_of_any_model_zeros_or_means() {
    let (root, entries) = models(&[3, 5]);
    let one = |model: usize, row: usize| Selection::Rows {
        of: vec![Selection::Model(model)],
        runs: vec![run(0, row, 1)],
    };
    let chosen = Selection::Rows {
        of: vec![
            Selection::Model(0),
            Selection::Model(1),
            Selection::Zeros(2),
            Selection::Mean(vec![one(0, 2), one(1, 4)]),
            Selection::MeanRow(Box::new(Selection::Model(1))),
        ],
        runs: vec![
            run(1, 3, 2),
            run(0, 0, 1),
            run(2, 0, 2),
            run(3, 0, 1),
            run(4, 0, 1),
            run(4, 0, 1),
        ],
    };
    let found = merged(&root, &[chosen.clone(), chosen]);
    let all: Vec<&[f32]> = (0..5).map(|index| row(&entries[1], index)).collect();
    let expected = [
        row(&entries[1], 3).to_vec(),
        row(&entries[1], 4).to_vec(),
        row(&entries[0], 0).to_vec(),
        vec![0.0; 2 * COLUMNS],
        mean(&[row(&entries[0], 2), row(&entries[1], 4)]),
        mean(&all),
        mean(&all),
    ];
    assert_eq!(found, expected.concat());
}

#[test]
fn a_model_without_a_selection_is_as_it_is_stored() {
    let (root, _) = models(&[2, 2]);
    let paths = [root.path().join("m0"), root.path().join("m1")];
    let builder = Builder::new("linear").number("weight", 1.0);
    let builder = builder.numbers("weight", &[1.0, 1.0]);
    let (manifest, _) = plan(builder, None, &open(&paths).unwrap(), |_, view| view).unwrap();
    let Content::Merge(merge) = &manifest.tensors[0].content else { panic!("is merged") };
    assert!(merge.experts.iter().all(|source| matches!(source, Source::Stored(_))));
}

#[test]
fn rows_that_there_are_not_are_refused() {
    let rows = |of: Vec<Selection>, run: Run| Selection::Rows { of, runs: vec![run] };
    for (selection, reason) in [
        (rows(vec![Selection::Model(0)], run(0, 2, 2)), "2 rows from 2 on"),
        (rows(vec![Selection::Model(0)], run(1, 0, 1)), "1 rows from 0 on"),
        (rows(vec![Selection::Model(0)], run(0, usize::MAX, 2)), "2 rows from"),
        (Selection::Model(1), "model 1, of 1"),
        (Selection::Mean(Vec::new()), "the mean is asked of tensors of shapes []"),
        (Selection::Mean(vec![Selection::Model(0), Selection::Zeros(2)]), "the mean is asked"),
    ] {
        let said = refusal(&[3], std::slice::from_ref(&selection));
        assert!(said.contains(reason), "{said}");
    }
    let said = refusal(&[3, 2], &[Selection::Model(0), Selection::Model(1)]);
    assert!(said.contains("has 2 rows and 3"), "{said}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_runs_are_the_rows_picked_by_hand(
        picks in prop::collection::vec((0..2_usize, 0.0..1.0_f64, 0.0..1.0_f64), 1..40),
        rows in (1..30_usize, 1..30_usize),
    ) {
        let rows = [rows.0, rows.1];
        let (root, entries) = models(&rows);
        let runs: Vec<Run> = picks
            .iter()
            .map(|&(of, first, count)| {
                let first = (first * rows[of] as f64) as usize;
                run(of, first, ((count * (rows[of] - first) as f64) as usize).max(1))
            })
            .collect();
        let expected: Vec<f32> = runs
            .iter()
            .flat_map(|run| &entries[run.of][run.first * COLUMNS..(run.first + run.count) * COLUMNS])
            .copied()
            .collect();
        let of = vec![Selection::Model(0), Selection::Model(1)];
        let selection = Selection::Rows { of, runs };
        prop_assert_eq!(merged(&root, &[selection.clone(), selection]), expected);
    }
}
