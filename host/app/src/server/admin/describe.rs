//! The OpenAPI document: what the handlers say of themselves, and what holds for all of them.

use super::super::access;
use super::super::problem::ProblemBody;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, PathItem, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};

const TOKEN: &str = "token";
const PROBLEM: &str = "application/problem+json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Tidemill admin API",
        description = "What an operator asks of a host that runs, and steers it by. Every answer that is not what was asked \
                       for is a problem document (RFC 9457)."
    ),
    components(schemas(ProblemBody))
)]
struct Document;

/// The document before the handlers have said anything.
pub(super) fn document() -> OpenApi {
    Document::openapi()
}

/// Adds what is not the handlers' to say: the token, and the answers of whoever stands before them.
pub(super) fn finish(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.security_schemes.insert(TOKEN.to_owned(), token.into());
    for (path, item) in &mut document.paths.paths {
        let open = access::is_open(path);
        for operation in operations(item) {
            let mut add = |status: &str, what: &str| {
                let content = ContentBuilder::new()
                    .schema(Some(RefOr::Ref(Ref::from_schema_name(ProblemBody::name()))))
                    .build();
                let response = ResponseBuilder::new().description(what).content(PROBLEM, content).build();
                operation.responses.responses.entry(status.to_owned()).or_insert(response.into());
            };
            add("403", "Asked under a name that is not this host's, or by a page of another origin");
            if !open {
                add("401", "The token is missing or wrong");
                operation.security = Some(vec![SecurityRequirement::new::<_, _, &str>(TOKEN, [])]);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch]
        .into_iter()
        .filter_map(Option::as_mut)
}

/// `/openapi.json`.
pub(super) fn route(document: &OpenApi) -> Router {
    // It is a tree of maps with names for keys, and always has a text.
    let text = Bytes::from(serde_json::to_vec_pretty(document).unwrap_or_default());
    let answer = move || {
        let text = text.clone();
        async move {
            ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
        }
    };
    Router::new().route("/openapi.json", get(answer))
}
