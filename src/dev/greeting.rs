//! What `semilayer dev` prints once everything answers: a page for people, or one line for programs.

use serde_json::{Value, json};
use url::Url;

use super::furnish::Demo;
use super::state::{self, State};
use crate::config::GatewayConfig;

/// Everything that there is to say.
pub(super) struct Greeting<'a> {
    pub(super) url: &'a Url,
    pub(super) internal_url: &'a Url,
    pub(super) state: &'a State,
    pub(super) internal_token: &'a str,
    pub(super) demo: Option<&'a Demo>,
    pub(super) config: &'a GatewayConfig,
}

impl Greeting<'_> {
    /// The line for programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "url": plain(self.url),
            "internalUrl": plain(self.internal_url),
            "adminKey": self.state.admin_key,
            "secretKey": self.state.secret_key,
            "internalToken": self.internal_token,
            "runnerId": self.demo.map(|demo| demo.runner.id),
            "sourceId": self.demo.map(|demo| &demo.source_id),
            "lenses": self.demo.map_or(&[][..], |demo| &demo.lenses),
            "dataDir": std::path::absolute(&self.config.data_dir).unwrap_or_else(|_| self.config.data_dir.clone()),
        })
    }

    /// The page for people.
    pub(super) fn text(&self) -> String {
        let (url, internal) = (plain(self.url), plain(self.internal_url));
        let State {
            admin_key,
            secret_key,
            ..
        } = self.state;
        let data_dir = self.config.data_dir.display();
        let kept = state::path(&self.config.data_dir);
        let mut page = format!(
            "\nsemilayer is running. Ctrl-C stops it, and the next start finds everything again.\n\
             \n\
             \x20 REST and runners   {url}   (reference: {url}/docs)\n\
             \x20 internal listener  {internal}   (token: {token})\n\
             \x20 data               {data_dir}\n\
             \n\
             \x20 admin key          {admin_key}\n\
             \x20 secret key         {secret_key}\n\
             \x20 A gateway keeps only hashes of keys; these are also in {kept}.\n",
            token = self.internal_token,
            kept = kept.display(),
        );
        match self.demo {
            Some(demo) => page.push_str(&format!(
                "\nThe demo is a small shop in SQLite, served by a runner of its own. Its lenses:\n\
                 {}. Three orders, the dearest first:\n\
                 \n\
                 \x20 curl -s {url}/v1/query/orders \\\n\
                 \x20   -H 'Authorization: Bearer {secret_key}' -H 'Content-Type: application/json' \\\n\
                 \x20   -d '{{\"where\": {{\"status\": \"shipped\"}}, \"orderBy\": {{\"field\": \"total\", \"dir\": \"desc\"}}, \"limit\": 3}}'\n\
                 \n\
                 The same from the command line, in another terminal:\n\
                 \n\
                 \x20 export SEMILAYER_URL={url} SEMILAYER_ADMIN_KEY={admin_key} SEMILAYER_KEY={secret_key}\n\
                 \x20 semilayer runners list\n\
                 \x20 semilayer query orders --where '{{\"status\": \"shipped\"}}' --order-by total:desc --limit 3\n\n",
                demo.lenses.join(", "),
            )),
            None => page.push_str(&format!(
                "\nNo demo was added. In another terminal:\n\
                 \n\
                 \x20 export SEMILAYER_URL={url} SEMILAYER_ADMIN_KEY={admin_key} SEMILAYER_KEY={secret_key}\n\
                 \x20 semilayer runners create my-runner\n\n",
            )),
        }
        page
    }
}

/// A URL as people write it, without the slash at the end.
fn plain(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}
