locals {
  # tests/terraform/ holds these to forkjoin_gcp/gcp/firestore_documents.py.
  segments     = "fj_segments"
  dead_letters = "fj_dead_letters"
  ttl_field    = "expire_at"

  database_name = "projects/${var.project}/databases/${var.database.id}"
}

resource "google_firestore_database" "this" {
  count = var.database.create ? 1 : 0

  project     = var.project
  name        = var.database.id
  location_id = coalesce(var.database.location, var.location)
  type        = "FIRESTORE_NATIVE"

  point_in_time_recovery_enablement = var.database.point_in_time_recovery ? "POINT_IN_TIME_RECOVERY_ENABLED" : "POINT_IN_TIME_RECOVERY_DISABLED"
  delete_protection_state           = var.deletion_protection ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  deletion_policy                   = var.deletion_protection ? "ABANDON" : "DELETE"

  depends_on = [google_project_service.this]
}

# A safety net: what nobody settled is deleted when its time is over.
resource "google_firestore_field" "expiry" {
  project    = var.project
  database   = local.database_id
  collection = local.segments
  field      = local.ttl_field

  ttl_config {}

  # It rises with time: an index on it would be a hotspot of 500 writes a second.
  index_config {}
}

# Every query goes by document name, so no field needs an index. Each one would be paid for at
# every write, and those that rise with time would limit how many there can be.
resource "google_firestore_field" "unindexed" {
  for_each = toset([local.segments, local.dead_letters])

  project    = var.project
  database   = local.database_id
  collection = each.key
  field      = "*"

  index_config {}

  # Firestore changes one field of a collection group at a time.
  depends_on = [google_firestore_field.expiry]
}

locals {
  database_id = var.database.create ? google_firestore_database.this[0].name : var.database.id
}
