//! What answers when no route does: 404, or 405 with the methods that the address has. Which addresses
//! exist is read from the API's own description, so the two cannot disagree.

use actix_web::dev::ResourceDef;
use actix_web::http::Method;
use actix_web::{HttpRequest, Route, web};
use utoipa::openapi::{OpenApi, PathItem};

use super::error::{ApiError, Code};

/// The addresses of the API with their methods.
pub(super) struct Addresses(Vec<(ResourceDef, Vec<Method>)>);

impl Addresses {
    /// Reads them from the API's description.
    pub(super) fn of(api: &OpenApi) -> Self {
        Self(
            api.paths
                .paths
                .iter()
                .map(|(path, item)| (ResourceDef::new(path.as_str()), methods(item)))
                .collect(),
        )
    }

    /// The methods of an address; none when there is no such address.
    fn methods(&self, path: &str) -> Vec<Method> {
        let matching = self.0.iter().filter(|(address, _)| address.is_match(path));
        matching
            .flat_map(|(_, methods)| methods.iter().cloned())
            .collect()
    }
}

fn methods(item: &PathItem) -> Vec<Method> {
    let all = [
        (Method::GET, item.get.is_some()),
        (Method::PUT, item.put.is_some()),
        (Method::POST, item.post.is_some()),
        (Method::PATCH, item.patch.is_some()),
        (Method::DELETE, item.delete.is_some()),
    ];
    all.into_iter()
        .filter_map(|(method, there)| there.then_some(method))
        .collect()
}

/// Answers what no route takes.
///
/// # Errors
///
/// Always: that is what it is for.
pub(super) async fn fallback(request: HttpRequest) -> Result<&'static str, ApiError> {
    let methods = request
        .app_data::<web::Data<Addresses>>()
        .map(|all| all.methods(request.path()))
        .unwrap_or_default();
    Err(if methods.is_empty() {
        ApiError::new(
            Code::NotFound,
            "there is nothing at this address; /docs lists what there is",
        )
    } else {
        wrong_method(&request, methods)
    })
}

/// Answers the other methods of an address that has one only and stands outside of the description.
pub(super) fn only(method: Method) -> Route {
    web::to(move |request: HttpRequest| {
        let error = wrong_method(&request, vec![method.clone()]);
        async move { Err::<&'static str, _>(error) }
    })
}

fn wrong_method(request: &HttpRequest, methods: Vec<Method>) -> ApiError {
    let listed: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let message = format!(
        "this address does not have {}; it has {}",
        request.method(),
        listed.join(", ")
    );
    ApiError::new(Code::MethodNotAllowed, message).allowing(methods)
}
