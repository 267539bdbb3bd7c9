//! The keys' entries by slot, in pieces: they grow without a move of those that are there, which would hold all events up for as
//! long as the lane's memory takes to copy, and would need it twice.

use super::Entry;
use std::ops::{Index, IndexMut};

/// Entries of a piece, as a power of two: some 800 KiB.
const PIECE_BITS: u32 = 12;
const PIECE: usize = 1 << PIECE_BITS;

/// A list that only grows.
#[derive(Default)]
pub(super) struct Entries {
    /// All full but the last.
    pieces: Vec<Vec<Entry>>,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }
    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<&Entry> {
        self.pieces.get(slot >> PIECE_BITS)?.get(slot & (PIECE - 1))
    }
    pub(super) fn push(&mut self, entry: Entry) {
        match self.pieces.last_mut().filter(|last| last.len() < PIECE) {
            Some(last) => last.push(entry),
            None => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(entry);
                self.pieces.push(piece);
            }
        }
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.pieces.iter().flatten()
    }
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.pieces.iter_mut().flatten()
    }
}

impl Index<usize> for Entries {
    type Output = Entry;
    #[inline]
    fn index(&self, slot: usize) -> &Entry {
        &self.pieces[slot >> PIECE_BITS][slot & (PIECE - 1)]
    }
}

impl IndexMut<usize> for Entries {
    #[inline]
    fn index_mut(&mut self, slot: usize) -> &mut Entry {
        &mut self.pieces[slot >> PIECE_BITS][slot & (PIECE - 1)]
    }
}
