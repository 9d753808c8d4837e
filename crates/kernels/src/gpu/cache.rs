//! What was loaded or compiled, kept for each device.

use std::sync::RwLock;

use candle_core::Result;

/// One value per device. There are few devices: a search is faster than a table.
pub(super) struct Cache<Id, T>(RwLock<Vec<(Id, T)>>);

impl<Id: Copy + PartialEq, T: Clone> Cache<Id, T> {
    pub(super) const fn new() -> Self {
        Self(RwLock::new(Vec::new()))
    }

    /// The value of a device, made on first use.
    pub(super) fn get(&self, id: Id, make: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(value) = self.known(id) {
            return Ok(value);
        }
        let value = make()?;
        self.0.write().expect("no panic while the lock is held").push((id, value.clone()));
        Ok(value)
    }

    fn known(&self, id: Id) -> Option<T> {
        let values = self.0.read().expect("no panic while the lock is held");
        values.iter().find(|(known, _)| *known == id).map(|(_, value)| value.clone())
    }
}
