//! What is wanted of a schema's values: for each value on the way to a wanted one a step, made once for each schema.
//!
//! Invariants: only what is wanted is read, all else is gone over; where a map says a key twice the last one counts, with
//! all that is below it; a wanted scalar costs no allocation.

use super::schema::Schema;
use super::shape::{Shape, Shapes};
use super::walk::{Input, Scalar, Walked, Wrong};
use crate::format::paths::{Child, Paths};
use crate::format::{Kind, Slots};
use std::collections::HashMap;

/// Shapes, and what is wanted of them.
#[derive(Debug)]
pub(super) struct Plan {
    shapes: Shapes,
    nodes: Vec<Node>,
}

/// A value that is wanted, or has something wanted in it.
#[derive(Debug)]
struct Node {
    shape: usize,
    /// Its place among the paths.
    path: usize,
    below: Below,
}

#[derive(Debug)]
enum Below {
    /// Nothing is wanted of what is inside.
    Nothing,
    Record {
        /// One for each field as written: gone over, or wanted.
        fields: Vec<Option<usize>>,
        /// Wanted fields that the reader adds: its number there, and the node.
        defaults: Vec<(usize, usize)>,
    },
    /// By index in the array, and by key in the map; the item's shape.
    Items {
        wanted: Vec<(usize, usize)>,
        item: usize,
    },
    Entries {
        /// The number of the path's child, and the node.
        wanted: Vec<(usize, usize)>,
        value: usize,
    },
    Branches(Vec<usize>),
}

impl Plan {
    /// For values of the writer's schema, as the reader's has them if there is one.
    pub(super) fn new(paths: &Paths, writer: &Schema, reader: Option<&Schema>) -> Result<Plan, String> {
        let shapes = Shapes::new(writer, reader)?;
        let root = shapes.root;
        let mut planner = Planner { paths, shapes: &shapes, nodes: Vec::new(), known: HashMap::new() };
        planner.node(root, 0);
        let nodes = planner.nodes;
        Ok(Plan { shapes, nodes })
    }

    /// The wanted paths that no value of the schema has.
    pub(super) fn absent(&self, paths: &Paths, wanted: usize) -> Vec<usize> {
        let mut has = vec![false; wanted];
        for node in &self.nodes {
            if !matches!(self.shapes.at(node.shape), Shape::Null | Shape::Foreign) {
                paths.nodes[node.path].slots.iter().for_each(|s| has[*s] = true);
            }
        }
        (0..wanted).filter(|s| !has[*s]).collect()
    }

    /// Reads the record's value from `at` on, and all of it.
    pub(super) fn run(&self, paths: &Paths, record: &[u8], at: usize, out: &mut Slots) -> Walked<()> {
        let mut run = Run { plan: self, paths, out, is_default: false };
        let mut input = Input::new(record, at);
        run.value(0, &mut input, 0)?;
        if input.is_at_end() {
            return Ok(());
        }
        input.wrong(format!("{} bytes follow the record", record.len() - input.at))
    }
}

struct Planner<'p> {
    paths: &'p Paths,
    shapes: &'p Shapes,
    nodes: Vec<Node>,
    /// By shape and path: shapes may contain themselves, paths end.
    known: HashMap<(usize, usize), usize>,
}

impl Planner<'_> {
    fn node(&mut self, shape: usize, path: usize) -> usize {
        if let Some(known) = self.known.get(&(shape, path)) {
            return *known;
        }
        let at = self.nodes.len();
        self.known.insert((shape, path), at);
        self.nodes.push(Node { shape, path, below: Below::Nothing });
        let children = &self.paths.nodes[path].children;
        let below = match self.shapes.at(shape) {
            // Whatever the branch is, it stands where the union does.
            Shape::Union(branches) => Below::Branches(branches.iter().map(|b| self.node(*b, path)).collect()),
            _ if children.is_empty() => Below::Nothing,
            Shape::Record(record) => {
                let child = |name: &str| children.iter().find(|c| c.name == name);
                let mut fields = Vec::with_capacity(record.fields.len());
                for part in &record.fields {
                    let child = part.name.as_deref().and_then(child);
                    fields.push(child.map(|c| self.node(part.shape, c.node)));
                }
                let mut defaults = Vec::new();
                for (i, default) in record.defaults.iter().enumerate() {
                    if let Some(c) = child(&default.name) {
                        defaults.push((i, self.node(default.shape, c.node)));
                    }
                }
                Below::Record { fields, defaults }
            }
            Shape::Array(item) => {
                let index = |c: &Child| c.index.map(|i| (i, c.node));
                let wanted = children.iter().filter_map(index).map(|(i, n)| (i, self.node(*item, n)));
                Below::Items { wanted: wanted.collect(), item: *item }
            }
            Shape::Map(value) => {
                let wanted = children.iter().enumerate().map(|(i, c)| (i, self.node(*value, c.node)));
                Below::Entries { wanted: wanted.collect(), value: *value }
            }
            _ => Below::Nothing,
        };
        self.nodes[at].below = below;
        at
    }
}

struct Run<'r> {
    plan: &'r Plan,
    paths: &'r Paths,
    out: &'r mut Slots,
    /// The bytes are a default's, not the record's.
    is_default: bool,
}

impl Run<'_> {
    fn value(&mut self, node: usize, input: &mut Input<'_>, depth: usize) -> Walked<()> {
        input.enter(depth)?;
        let plan = self.plan;
        let node = &plan.nodes[node];
        let shapes = &plan.shapes;
        if let Below::Branches(nodes) = &node.below {
            let Shape::Union(branches) = shapes.at(node.shape) else { return input.foreign() };
            let (n, _) = input.branch(branches)?;
            return self.value(nodes[n], input, depth + 1);
        }
        let wanted_here = &self.paths.nodes[node.path].slots;
        let from = (input.at, input.values);
        match shapes.at(node.shape) {
            Shape::Record(_) | Shape::Array(_) | Shape::Map(_) => {
                if !wanted_here.is_empty() {
                    self.structure(wanted_here, node.shape, input, depth)?;
                    if matches!(node.below, Below::Nothing) {
                        return Ok(());
                    }
                    // Once more, for what is inside.
                    (input.at, input.values) = from;
                }
                self.inside(node, input, depth)
            }
            scalar => self.scalar(wanted_here, scalar, input),
        }
    }

    fn scalar(&mut self, slots: &[usize], shape: &Shape, input: &mut Input<'_>) -> Walked<()> {
        let from = self.out.tail().len();
        match input.scalar(shape, self.out.tail())? {
            Scalar::Missing => slots.iter().for_each(|s| self.out.set_missing(*s)),
            Scalar::Written(kind) => slots.iter().for_each(|s| self.out.set_tail(*s, kind, from)),
            Scalar::Range(kind, at, len) if !self.is_default => {
                slots.iter().for_each(|s| self.out.set_range(*s, kind, at, len));
            }
            Scalar::Range(kind, at, len) => {
                let text = input.slice(at, len);
                slots.iter().for_each(|s| self.out.set_owned(*s, kind, text));
            }
        }
        Ok(())
    }

    fn structure(
        &mut self,
        slots: &[usize],
        shape: usize,
        input: &mut Input<'_>,
        depth: usize,
    ) -> Walked<()> {
        let from = self.out.tail().len();
        input.json(&self.plan.shapes, shape, depth, self.out.tail())?;
        slots.iter().for_each(|s| self.out.set_tail(*s, Kind::Structure, from));
        Ok(())
    }

    fn inside(&mut self, node: &Node, input: &mut Input<'_>, depth: usize) -> Walked<()> {
        let shapes = &self.plan.shapes;
        match (&node.below, shapes.at(node.shape)) {
            (Below::Record { fields, defaults }, Shape::Record(record)) => {
                for (part, wanted) in record.fields.iter().zip(fields) {
                    match wanted {
                        Some(node) => self.value(*node, input, depth + 1)?,
                        None => input.skip(shapes, part.written, depth + 1)?,
                    }
                }
                for (i, node) in defaults {
                    let mut bytes = Input::new(&record.defaults[*i].bytes, 0);
                    let outer = std::mem::replace(&mut self.is_default, true);
                    // Where it is wrong is where the record is that lacks it.
                    self.value(*node, &mut bytes, depth + 1).map_err(|w| Wrong { at: input.at, ..w })?;
                    self.is_default = outer;
                }
                Ok(())
            }
            (Below::Items { wanted, item }, _) => {
                input.items(|input, number| match wanted.iter().find(|(index, _)| *index == number) {
                    Some((_, node)) => self.value(*node, input, depth + 1),
                    None => input.skip(shapes, *item, depth + 1),
                })
            }
            (Below::Entries { wanted, value }, _) => input.items(|input, _| {
                let key = input.key()?;
                let children = &self.paths.nodes[node.path].children;
                match wanted.iter().find(|(child, _)| children[*child].name == key) {
                    Some((child, node)) => {
                        self.forget(children[*child].node);
                        self.value(*node, input, depth + 1)
                    }
                    None => input.skip(shapes, *value, depth + 1),
                }
            }),
            _ => input.skip(shapes, node.shape, depth),
        }
    }

    /// Empties what an earlier value of the same place has left.
    fn forget(&mut self, path: usize) {
        let place = &self.paths.nodes[path];
        place.slots.iter().chain(&place.below).for_each(|s| self.out.set_missing(*s));
    }
}
