locals {
  accounts = {
    enqueuer  = "Enqueues: for the services that hand items in."
    join      = "Handles batches: what the join function runs as."
    sweeper   = "Schedules forgotten batches again: what the sweep function runs as."
    invoker   = "Whose token Cloud Tasks sends to the join function; it may do nothing else."
    scheduler = "Whose token Cloud Scheduler sends to the sweep function; it may do nothing else."
    builder   = "Builds the functions' images."
  }

  # Who creates tasks, and so acts as the invoker, whose token they carry.
  creators = merge(
    { for name in ["enqueuer", "join", "sweeper"] : name => google_service_account.this[name].member },
    { for account in var.enqueuers : account => "serviceAccount:${account}" },
  )
  # Who writes segments; the sweeper only reads them.
  writers = { for name, member in local.creators : name => member if name != "sweeper" }

  database_condition    = "resource.type == \"firestore.googleapis.com/Database\" && resource.name == \"${local.database_name}\""
  memorystore_condition = "resource.name == \"${local.memorystore_name}\""
  memorystore_project   = split("/", local.memorystore_name)[1]
}

resource "google_service_account" "this" {
  for_each = local.accounts

  project      = var.project
  account_id   = "${var.name}-${each.key}"
  display_name = "${var.name} ${each.key}"
  description  = each.value

  depends_on = [google_project_service.this]
}

resource "google_cloud_tasks_queue_iam_member" "enqueuer" {
  for_each = {
    for pair in setproduct(keys(local.task_queues), keys(local.creators)) :
    "${pair[0]} ${pair[1]}" => { queue = pair[0], member = local.creators[pair[1]] }
  }

  project  = var.project
  location = var.location
  name     = google_cloud_tasks_queue.this[each.value.queue].name
  role     = "roles/cloudtasks.enqueuer"
  member   = each.value.member
}

resource "google_service_account_iam_member" "act_as_invoker" {
  for_each = local.creators

  service_account_id = google_service_account.this["invoker"].name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}

resource "google_project_iam_member" "database" {
  for_each = local.creators

  project = var.project
  role    = contains(keys(local.writers), each.key) ? "roles/datastore.user" : "roles/datastore.viewer"
  member  = each.value

  condition {
    title       = "${var.name} database"
    description = "Only the database of ${var.name}."
    expression  = local.database_condition
  }
}

# To connect…
resource "google_project_iam_member" "memorystore_connect" {
  for_each = local.creators

  project = local.memorystore_project
  role    = "roles/memorystore.dbConnectionUser"
  member  = each.value

  condition {
    title       = "${var.name} memorystore"
    description = "Only the Memorystore instance of ${var.name}."
    expression  = local.memorystore_condition
  }
}

# …and to find out where to, and whose certificates to trust.
resource "google_project_iam_member" "memorystore_find" {
  for_each = local.creators

  project = local.memorystore_project
  role    = "roles/memorystore.viewer"
  member  = each.value

  condition {
    title       = "${var.name} memorystore"
    description = "Only the Memorystore instance of ${var.name}."
    expression  = "${local.memorystore_condition} || resource.name == \"${local.memorystore_name}/certificateAuthority\""
  }
}

# The functions check the caller's token themselves, whole: signature, expiry, issuer, audience and
# account. Cloud Run's own check would have to be passed first and takes the signature off the
# token on its way, and then nobody could tell a genuine one from one made up by whoever gets past
# a wrong binding. So IAM lets requests through, ingress lets only internal ones, and the code lets
# only the invoker, or the scheduler.
resource "google_cloud_run_service_iam_member" "join" {
  # checkov:skip=CKV_GCP_102: ingress is internal and the code checks the token, as told above
  project  = var.project
  location = var.location
  service  = google_cloudfunctions2_function.join.name
  role     = "roles/run.invoker"
  member   = "allUsers"
}

resource "google_cloud_run_service_iam_member" "sweep" {
  # checkov:skip=CKV_GCP_102: ingress is internal and the code checks the token, as told above
  project  = var.project
  location = var.location
  service  = google_cloudfunctions2_function.sweep.name
  role     = "roles/run.invoker"
  member   = "allUsers"
}

resource "google_storage_bucket_iam_member" "builder" {
  bucket = google_storage_bucket.functions.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.this["builder"].member
}

resource "google_artifact_registry_repository_iam_member" "builder" {
  project    = var.project
  location   = var.location
  repository = google_artifact_registry_repository.functions.name
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.this["builder"].member
}

resource "google_project_iam_member" "builder_logs" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.this["builder"].member
}
