//! What each thread keeps for each tokenizer: caches and buffers, without a lock.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

/// Whose buffers they are: lives as long as its tokenizer, so that threads know what to drop.
#[derive(Default)]
pub struct Owner(Arc<()>);

/// One thread's buffers, of all tokenizers of a kind; the one in use comes first.
pub struct PerThread<T>(RefCell<Vec<(Weak<()>, Box<T>)>>);

impl<T: Default> PerThread<T> {
    pub const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// Runs `work` with this thread's buffers for `owner`.
    pub fn with<R>(&self, owner: &Owner, work: impl FnOnce(&mut T) -> R) -> R {
        let all = &mut *self.0.borrow_mut();
        let mine = |(of, _): &(Weak<()>, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(&owner.0));
        if !all.first().is_some_and(mine) {
            match all.iter().position(mine) {
                Some(at) => all.swap(0, at),
                None => {
                    all.retain(|(of, _)| of.strong_count() > 0);
                    all.insert(0, (Arc::downgrade(&owner.0), Box::default()));
                }
            }
        }
        match all.first_mut() {
            Some((_, buffers)) => work(buffers),
            None => work(&mut T::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_has_its_own_until_it_is_dropped() {
        let all = PerThread::<String>::new();
        let (first, second) = (Owner::default(), Owner::default());
        all.with(&first, |text| text.push('1'));
        all.with(&second, |text| text.push('2'));
        all.with(&first, |text| text.push('1'));
        assert_eq!(all.with(&first, |text| text.clone()), "11");
        assert_eq!(all.with(&second, |text| text.clone()), "2");
        drop(first);
        assert_eq!(all.with(&Owner::default(), |text| text.clone()), "");
        assert_eq!(all.0.borrow().len(), 2);
    }
}
