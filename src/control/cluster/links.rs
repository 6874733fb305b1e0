//! The links with the other gateways: one to each that says where it is reached.

use std::collections::HashMap;

use actix::prelude::*;

use super::{Cluster, Peer};
use crate::control::catalogue::Catalogue;
use crate::control::peer::{PeerGone, PeerLink};
use crate::control::picker::PeerChanged;
use crate::ids::GatewayId;

impl Cluster {
    /// Has a link to each gateway that says where it is, and to no other.
    pub(super) fn follow_gateways(&mut self) {
        let (own, catalogue) = (self.cx.identity.current(), self.cx.catalogue.current());
        let mut there: HashMap<GatewayId, &str> = HashMap::new();
        for (id, url) in catalogue.gateways().filter(|(id, _)| *id != own) {
            match url {
                Some(url) => {
                    there.insert(id, url);
                }
                None => self.warn_of_hidden(id),
            }
        }
        let moved = |(id, peer): (&GatewayId, &Peer)| {
            (there.get(id) != Some(&peer.url.as_str())).then_some(*id)
        };
        let gone: Vec<_> = self.peers.iter().filter_map(moved).collect();
        for id in gone {
            self.peer_gone(id);
        }
        for (id, url) in there {
            if !self.peers.contains_key(&id) {
                self.peer_came(id, url.to_owned());
            }
        }
        self.warn_if_hidden_itself(&catalogue);
    }

    fn peer_came(&mut self, id: GatewayId, url: String) {
        log::info!(gateway_id:% = id, url = url.as_str(); "gateway {id} is reached at {url}");
        let link = PeerLink::new(id, url.clone(), self.cx.peers.clone()).start();
        self.cx.peer_changed.do_send(PeerChanged::Up {
            gateway_id: id,
            execute: link.clone().recipient(),
            cancel: link.clone().recipient(),
        });
        self.peers.insert(id, Peer { url, link });
    }

    pub(super) fn peer_gone(&mut self, id: GatewayId) {
        if let Some(peer) = self.peers.remove(&id) {
            log::info!(gateway_id:% = id; "gateway {id} is gone");
            self.cx
                .peer_changed
                .do_send(PeerChanged::Down { gateway_id: id });
            peer.link.do_send(PeerGone);
        }
    }

    fn warn_of_hidden(&mut self, id: GatewayId) {
        if self.hidden.insert(id) {
            log::warn!(gateway_id:% = id; "gateway {id} does not say where it is reached (SEMILAYER_ADVERTISE_URL), queries for the runners that are connected to it cannot be answered here");
        }
    }

    fn warn_if_hidden_itself(&mut self, catalogue: &Catalogue) {
        let own = self.cx.identity.current();
        let alone = catalogue.gateways().all(|(id, _)| id == own);
        if self.cx.advertise_url.is_none() && !alone && self.hidden.insert(own) {
            log::warn!(
                "other gateways are up, and this one does not say where it is reached: they cannot answer queries for the runners that are connected here. Set SEMILAYER_INTERNAL_LISTEN and SEMILAYER_ADVERTISE_URL"
            );
        }
    }
}
