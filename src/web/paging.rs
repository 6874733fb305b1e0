//! Pages of lists: `?limit=&cursor=` in, `{items, nextCursor?}` out. A cursor is the id of the last item.

use std::fmt::Display;
use std::str::FromStr;

use super::error::{ApiError, ApiResult};
use super::types::{DEFAULT_PAGE, MAX_PAGE, Page};
use crate::storage;

/// Which page was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging<I> {
    after: Option<I>,
    limit: u32,
}

impl<I: Copy + FromStr + Display> Paging<I> {
    /// Reads the two parameters.
    pub(super) fn of(limit: Option<u32>, cursor: Option<&str>) -> ApiResult<Self> {
        let limit = limit.unwrap_or(DEFAULT_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(ApiError::invalid(
                "limit",
                format!("`limit` must be between 1 and {MAX_PAGE}"),
            ));
        }
        let after = match cursor.map(str::parse) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(_)) => {
                let message = "`cursor` is not one that this list gave out; leave it out to start at the beginning";
                return Err(ApiError::invalid("cursor", message));
            }
        };
        Ok(Self { after, limit })
    }

    /// What to ask the store for: one item more than wanted tells whether there is another page.
    pub(super) fn page(&self) -> storage::Page<I> {
        storage::Page {
            after: self.after,
            limit: self.limit + 1,
        }
    }

    /// Cuts what the store answered into a page.
    pub(super) fn cut<T>(&self, mut rows: Vec<T>, id: impl Fn(&T) -> I) -> Page<T> {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows
            .last()
            .filter(|_| more)
            .map(|last| id(last).to_string());
        Page {
            items: rows,
            next_cursor,
        }
    }
}

impl<T> Page<T> {
    /// The same page of something else.
    pub(super) fn map<U>(self, each: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(each).collect(),
            next_cursor: self.next_cursor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RunnerId;

    #[test]
    fn a_page_ends_where_the_next_begins() {
        let ids: Vec<RunnerId> = (0..3).map(|_| RunnerId::new()).collect();
        let paging = Paging::of(Some(2), None).unwrap();
        assert_eq!(paging.page().limit, 3);
        let page = paging.cut(ids.clone(), |id| *id);
        assert_eq!(page.items, ids[..2]);
        let next: Paging<RunnerId> = Paging::of(Some(2), page.next_cursor.as_deref()).unwrap();
        assert_eq!(next.page().after, Some(ids[1]));
        assert!(next.cut(ids[2..].to_vec(), |id| *id).next_cursor.is_none());
    }

    #[test]
    fn limits_and_cursors_are_checked() {
        for limit in [0, 501] {
            assert!(Paging::<RunnerId>::of(Some(limit), None).is_err());
        }
        assert!(Paging::<RunnerId>::of(None, Some("x")).is_err());
    }
}
