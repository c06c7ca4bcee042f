//! Matching of units: which unit of a model answers to which of another, by their weights (the weight
//! matching of Git Re-Basin, Ainsworth et al. 2023, with a residual stream that stays as it is).
//!
//! A unit is a vector: its entries in all portions of a symmetry. The permutation that maximises the sum
//! of scalar products of matched vectors minimises the sum of their squared distances. All sums are
//! float64; each is made by one thread in one order, so that threads change nothing.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::entries::Entries;
use super::inputs::Inputs;
use super::monitor::Monitor;
use super::pool;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::linear::Matrix;
use crate::linear::assignment::assignment;
use crate::manifest::{Level, Order, Pair, Portion, Source, Symmetry, View};
use crate::program::block::BLOCK;

/// Units whose scalar products are computed at a time, and entries of each that are widened at a time.
const TILE: usize = 256;
const DEPTH: usize = 512;

/// Entries of each portion by which units are told apart first.
const SKETCH: usize = 64;

/// Differences below this part of squared norms may be made of rounding errors.
const ROUNDING: f64 = 1e-12;

/// Symmetries of up to so many units are matched side by side; larger ones one after the other, with
/// all threads for each.
const SMALL: usize = 2048;

/// For every symmetry the order in which the units of `model` are nearest to those of `template`: the
/// exact optimum of the assignment, and the order in which nothing moves where a model lacks a tensor of
/// the symmetry or has it in another shape.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) for a tensor that cannot be read,
/// [`Error::Setting`](crate::Error::Setting) for threads that cannot be started,
/// [`Error::Interrupted`](crate::Error::Interrupted).
pub fn match_units(
    template: &View,
    model: &View,
    symmetries: &[Symmetry],
    threads: Option<usize>,
    monitor: &Monitor,
) -> Result<Vec<Order>> {
    let pair = Pair::of(template, model);
    let checkpoints: Vec<Arc<Checkpoint>> = pair.checkpoints();
    let inputs = Inputs::new(checkpoints);
    let sources = symmetries.iter().map(|symmetry| pair.sources(symmetry));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let bytes = |sources: &Option<Vec<[Source; 2]>>| -> u64 {
        let stored = sources.iter().flatten().flatten().flat_map(Source::stored);
        stored.map(|stored| (stored.bytes[1] - stored.bytes[0]) as u64).sum()
    };
    monitor.expect(sources.iter().map(bytes).sum());
    let ordered = |place: usize| -> Result<Order> {
        let symmetry = &symmetries[place];
        let order = match &sources[place] {
            None => symmetry.unmoved(),
            Some(sources) => matched(symmetry, sources, &inputs, monitor)?,
        };
        monitor.advance(bytes(&sources[place]));
        Ok(order)
    };
    let small = |place: &usize| symmetries[*place].units <= SMALL;
    let (small, large): (Vec<usize>, Vec<usize>) = (0..symmetries.len()).partition(small);
    pool(threads)?.install(|| {
        let found: Result<Vec<Order>> = small.par_iter().map(|&place| ordered(place)).collect();
        let mut orders: Vec<(usize, Order)> = small.iter().copied().zip(found?).collect();
        for place in large {
            orders.push((place, ordered(place)?));
        }
        orders.sort_unstable_by_key(|(place, _)| *place);
        Ok(orders.into_iter().map(|(_, order)| order).collect())
    })
}

/// The order of one symmetry.
fn matched(
    symmetry: &Symmetry,
    sources: &[[Source; 2]],
    inputs: &Inputs,
    monitor: &Monitor,
) -> Result<Order> {
    let level = |level| Vectors::of(symmetry, level, sources, inputs, monitor);
    let units = level(Level::Units)?;
    if symmetry.members == 0 {
        let order = match units.told_apart()? {
            Some(order) => order,
            None => assigned(symmetry.units, &units.products()?),
        };
        return Ok(Order { units: order, members: Vec::new() });
    }
    let members = level(Level::Members)?;
    Ok(nested(symmetry, &units.products()?, &members.products()?))
}

fn assigned(size: usize, products: &[f32]) -> Vec<usize> {
    assignment(size, |row, column| f64::from(products[row * size + column]))
}

/// The best order of units and, within each pair of units, of their members: the members of every pair
/// are assigned first, and what that gives is part of the pair's value.
fn nested(symmetry: &Symmetry, units: &[f32], members: &[f32]) -> Order {
    let (count, each) = (symmetry.units, symmetry.members);
    let width = count * each;
    let mut values = Vec::with_capacity(count * count);
    let mut inner = Vec::with_capacity(count * count);
    for ours in 0..count {
        for theirs in 0..count {
            let value = |row: usize, column: usize| {
                f64::from(members[(ours * each + row) * width + theirs * each + column])
            };
            let order = assignment(each, value);
            let of_members: f64 =
                order.iter().enumerate().map(|(row, &column)| value(row, column)).sum();
            values.push(f64::from(units[ours * count + theirs]) + of_members);
            inner.push(order);
        }
    }
    let order = assignment(count, |row, column| values[row * count + column]);
    let places = order.iter().enumerate().flat_map(|(ours, &theirs)| {
        inner[ours * count + theirs].iter().map(move |member| theirs * each + member)
    });
    Order { members: places.collect(), units: order }
}

/// The units, or the members, of two models as vectors.
struct Vectors<'i> {
    parts: Vec<Part<'i>>,
    count: usize,
    monitor: &'i Monitor,
}

/// The entries of one portion. They are counted in steps: an entry of a row, or a row of columns.
struct Part<'i> {
    ours: Entries<'i>,
    theirs: Entries<'i>,
    columns: bool,
    /// Entries of a row of the tensor.
    row_length: usize,
    /// The portion's first row or column.
    first: usize,
    /// Rows or columns of a unit.
    width: usize,
    /// Number of steps, and of entries in each.
    steps: usize,
    step: usize,
}

impl<'i> Vectors<'i> {
    fn of(
        symmetry: &Symmetry,
        level: Level,
        sources: &[[Source; 2]],
        inputs: &'i Inputs,
        monitor: &'i Monitor,
    ) -> Result<Self> {
        let count = symmetry.count(level);
        let portions = symmetry.portions.iter().zip(sources);
        let portions = portions.filter(|(portion, _)| portion.level == level);
        let parts = portions.map(|(portion, sources)| Part::of(portion, count, sources, inputs));
        Ok(Self { parts: parts.collect::<Result<_>>()?, count, monitor })
    }

    /// The order, if a few entries of every unit show that no other order is as near: `None` if they do
    /// not.
    ///
    /// With `c(i, j)` for squared distances and an order `p`, let `d(i) = c(i, p(i))`. No order is nearer
    /// if `c(i, j) ≥ (d(i) + d(p⁻¹(j))) / 2` for all `i` and `j`: the sum over any order's pairs is then
    /// at least the sum of `d`. Distances over a part of the entries are bounds from below of `c`.
    fn told_apart(&self) -> Result<Option<Vec<usize>>> {
        let (ours, theirs) = (self.norms(false)?, self.norms(true)?);
        let nearest = self.tiles(true, |rows, columns, products| {
            rows.clone()
                .map(|row| {
                    let distances = columns.clone().zip(products.row(row - rows.start));
                    let distances = distances.map(|(column, product)| {
                        (ours[row] + theirs[column] - 2.0 * product, column)
                    });
                    distances.fold((f64::INFINITY, 0), |least, found| {
                        if found.0 < least.0 { found } else { least }
                    })
                })
                .collect::<Vec<_>>()
        })?;
        let mut order = vec![(f64::INFINITY, 0); self.count];
        for (rows, found) in nearest {
            for (least, found) in order[rows].iter_mut().zip(found) {
                if found.0 < least.0 {
                    *least = found;
                }
            }
        }
        let order: Vec<usize> = order.into_iter().map(|(_, column)| column).collect();
        let mut inverse = vec![usize::MAX; self.count];
        for (row, &column) in order.iter().enumerate() {
            inverse[column] = row;
        }
        if inverse.contains(&usize::MAX) {
            return Ok(None);
        }
        let distances = self.distances(&order)?;
        let apart = self.tiles(true, |rows, columns, products| {
            rows.clone().all(|row| {
                let mut places = columns.clone().zip(products.row(row - rows.start));
                places.all(|(column, product)| {
                    let norms = ours[row] + theirs[column];
                    let half = f64::midpoint(distances[row], distances[inverse[column]]);
                    order[row] == column || norms - 2.0 * product > half + ROUNDING * norms
                })
            })
        })?;
        Ok(apart.into_iter().all(|(_, apart)| apart).then_some(order))
    }

    /// The scalar products of all units of one model with all of the other, `[count, count]`.
    fn products(&self) -> Result<Vec<f32>> {
        let mut all = vec![0.0_f32; self.count * self.count];
        let panels = all.par_chunks_mut(TILE * self.count).enumerate();
        panels.try_for_each(|(place, panel)| {
            let rows = place * TILE..self.count.min((place + 1) * TILE);
            for columns in self.ranges() {
                let products = self.tile(&rows, &columns, false)?;
                for (row, panel) in panel.chunks_mut(self.count).enumerate() {
                    let slots = panel[columns.clone()].iter_mut();
                    slots
                        .zip(products.row(row))
                        .for_each(|(slot, &product)| *slot = product as f32);
                }
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// What `take` makes of the scalar products of a range of rows with a range of columns, for all of
    /// them, with the rows.
    fn tiles<R: Send>(
        &self,
        sketch: bool,
        take: impl Fn(&Range<usize>, &Range<usize>, &Matrix) -> R + Sync,
    ) -> Result<Vec<(Range<usize>, R)>> {
        let pairs: Vec<_> = self
            .ranges()
            .flat_map(|rows| self.ranges().map(move |columns| (rows.clone(), columns)))
            .collect();
        let found = pairs.into_par_iter().map(|(rows, columns)| {
            let products = self.tile(&rows, &columns, sketch)?;
            let found = take(&rows, &columns, &products);
            Ok((rows, found))
        });
        found.collect()
    }

    fn tile(&self, rows: &Range<usize>, columns: &Range<usize>, sketch: bool) -> Result<Matrix> {
        let mut products = Matrix::zeros(rows.len(), columns.len());
        let ours: Vec<usize> = rows.clone().collect();
        let theirs: Vec<usize> = columns.clone().collect();
        for part in &self.parts {
            for steps in part.chunks(sketch) {
                self.monitor.check()?;
                let ours = part.vectors(&part.ours, &ours, steps.clone());
                let theirs = part.vectors(&part.theirs, &theirs, steps);
                products.add_products(&ours, &theirs);
            }
        }
        Ok(products)
    }

    /// The squared norms of the sketches of one model.
    fn norms(&self, theirs: bool) -> Result<Vec<f64>> {
        self.each(|units| {
            let mut sums = vec![0.0; units.len()];
            for part in &self.parts {
                let entries = if theirs { &part.theirs } else { &part.ours };
                for steps in part.chunks(true) {
                    let vectors = part.vectors(entries, units, steps);
                    for (row, sum) in sums.iter_mut().enumerate() {
                        *sum += vectors.row(row).iter().map(|x| x * x).sum::<f64>();
                    }
                }
            }
            sums
        })
    }

    /// The squared distances of all units from those that take their places.
    fn distances(&self, order: &[usize]) -> Result<Vec<f64>> {
        self.each(|units| {
            let others: Vec<usize> = units.iter().map(|&unit| order[unit]).collect();
            let mut sums = vec![0.0; units.len()];
            for part in &self.parts {
                for steps in part.chunks(false) {
                    let ours = part.vectors(&part.ours, units, steps.clone());
                    let theirs = part.vectors(&part.theirs, &others, steps);
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let pairs = ours.row(row).iter().zip(theirs.row(row));
                        *sum += pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
                    }
                }
            }
            sums
        })
    }

    /// A number for every unit, some units at a time.
    fn each(&self, numbers: impl Fn(&[usize]) -> Vec<f64> + Sync) -> Result<Vec<f64>> {
        let ranges: Vec<Range<usize>> = self.ranges().collect();
        let found = ranges.into_par_iter().map(|range| {
            self.monitor.check()?;
            Ok(numbers(&range.collect::<Vec<_>>()))
        });
        Ok(found.collect::<Result<Vec<_>>>()?.concat())
    }

    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let count = self.count;
        (0..count).step_by(TILE).map(move |start| start..count.min(start + TILE))
    }
}

impl<'i> Part<'i> {
    fn of(
        portion: &Portion,
        count: usize,
        [ours, theirs]: &[Source; 2],
        inputs: &'i Inputs,
    ) -> Result<Self> {
        let shape = ours.shape();
        let row_length = shape.iter().skip(1).product();
        let width = portion.count / count;
        let columns = portion.axis == 1;
        let (steps, step) = if columns { (shape[0], width) } else { (width * row_length, 1) };
        let opened = |source| -> Result<Entries<'i>> {
            let entries = Entries::of(source, inputs)?;
            entries.prepare::<f64>();
            Ok(entries)
        };
        let (ours, theirs) = (opened(ours)?, opened(theirs)?);
        Ok(Self { ours, theirs, columns, row_length, first: portion.first, width, steps, step })
    }

    /// All steps in ranges, or those of a sketch in one.
    fn chunks(&self, sketch: bool) -> impl Iterator<Item = Range<usize>> + use<> {
        let entries = if sketch { SKETCH } else { DEPTH };
        let length = (entries / self.step).max(1);
        let steps = if sketch { length.min(self.steps) } else { self.steps };
        (0..steps).step_by(length).map(move |start| start..steps.min(start + length))
    }

    /// Some steps of some units, a row for each unit.
    fn vectors(&self, entries: &Entries, units: &[usize], steps: Range<usize>) -> Matrix {
        let mut vectors = Matrix::zeros(units.len(), steps.len() * self.step);
        if !self.columns {
            for (row, unit) in units.iter().enumerate() {
                let start = (self.first + unit * self.width) * self.row_length + steps.start;
                read(entries, start, vectors.row_mut(row));
            }
            return vectors;
        }
        let mut buffer = Vec::new();
        // Units side by side are read together.
        let mut place = 0;
        for run in units.chunk_by(|one, next| one + 1 == *next) {
            buffer.resize(run.len() * self.width, 0.0);
            for (at, row) in steps.clone().enumerate() {
                let start = row * self.row_length + self.first + run[0] * self.width;
                read(entries, start, &mut buffer);
                for (unit, part) in buffer.chunks(self.width).enumerate() {
                    let slots = at * self.width..(at + 1) * self.width;
                    vectors.row_mut(place + unit)[slots].copy_from_slice(part);
                }
            }
            place += run.len();
        }
        vectors
    }
}

/// Read entries from the one at `start` on, a block at a time.
fn read(entries: &Entries, start: usize, out: &mut [f64]) {
    for (place, out) in out.chunks_mut(BLOCK).enumerate() {
        let start = start + place * BLOCK;
        entries.read(start..start + out.len(), out);
    }
}
