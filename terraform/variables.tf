variable "project" {
  description = "The Google Cloud project id."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project = ${jsonencode(var.project)}: must be a project id (not a number): 6 to 30 lower-case letters, digits and hyphens."
  }
}

variable "location" {
  description = "The region of everything, as `us-central1`."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "location = ${jsonencode(var.location)}: must be a region, as us-central1."
  }
}

variable "name" {
  description = "What the network, the Memorystore instance, the functions and the service accounts are called, or begin with."
  type        = string
  default     = "forkjoin"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{2,18}[a-z0-9])$", var.name))
    error_message = "name = ${jsonencode(var.name)}: must be 4 to 20 lower-case letters, digits and hyphens, starting with a letter and not ending in a hyphen."
  }
}

variable "labels" {
  description = "Labels of what can have them."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "enable_apis" {
  description = "Whether to enable the APIs that are needed; `false` where another configuration does."
  type        = bool
  default     = true
  nullable    = false
}

variable "deletion_protection" {
  description = "Whether the database and the Memorystore instance refuse to be deleted."
  type        = bool
  default     = true
  nullable    = false
}

locals {
  # The settings of QueueConfig; tests/terraform/ holds this table to it.
  queue_settings = {
    version           = { default = "v1" }
    storage           = { default = "firestore", choices = ["firestore", "memorystore"] }
    batch_period      = { default = 0.5, min = 0, max = 60, unit = "s" }
    batch_size        = { default = 100, min = 1, max = 1000, unit = "items" }
    max_batch_items   = { default = 10000, min = 1, max = 1000000, unit = "items" }
    shards            = { default = 1, min = 1, max = 100, unit = "queues" }
    lanes             = { default = 1, min = 1, max = 100, unit = "lanes" }
    writer_timeout    = { default = 10, min = 0.1, max = 300, unit = "s" }
    max_clock_skew    = { default = 5, min = 0, max = 300, unit = "s" }
    acquire_timeout   = { default = 1, min = 0.05, max = 30, unit = "s" }
    acquire_attempts  = { default = 3, min = 1, max = 20, unit = "tries" }
    max_pending_items = { default = 100000, min = 1, max = 100000000, unit = "items" }
    max_pending_bytes = { default = 200000000, min = 1000000, max = 1000000000000, unit = "bytes" }
    enqueue_timeout   = { default = 30, min = 0, max = 3600, unit = "s" }
    concurrency       = { default = 50, min = 1, max = 10000, unit = "items" }
    max_attempts      = { default = 5, min = 1, max = 100, unit = "tries" }
    crash_limit       = { default = 3, min = 1, max = 100, unit = "runs" }
    retry_min_backoff = { default = 10, min = 0, max = 2505600, unit = "s" }
    retry_max_backoff = { default = 600, min = 0, max = 2505600, unit = "s" }
    dispatch_deadline = { default = 600, min = 15, max = 1800, unit = "s" }
    on_success        = { default = "delete", choices = ["delete", "keep"] }
    expire_after      = { default = 604800, min = 3600, max = 31536000, unit = "s" }
    sweep_after       = { default = 1800, min = 60, max = 604800, unit = "s" }
  }
  ranges  = { for name, setting in local.queue_settings : name => setting if can(setting.max) }
  choices = { for name, setting in local.queue_settings : name => setting.choices if can(setting.choices) }
  # The first may not be more than the second.
  ordered = {
    batch_size        = "max_batch_items"
    retry_min_backoff = "retry_max_backoff"
    writer_timeout    = "dispatch_deadline"
    sweep_after       = "expire_after"
  }
}

variable "queues" {
  description = "The queues by name. Settings are those of `QueueConfig`, in its units; one that is given here goes to the code as `FORKJOIN_SETTINGS`, and counts for more than what the code says itself. The rest is about the Cloud Tasks queues: `max_dispatches_per_second` and `max_concurrent_dispatches` of each shard (by default, the join function's capacity shared out), and `paused`."
  type = map(object({
    version                   = optional(string)
    storage                   = optional(string)
    batch_period              = optional(number)
    batch_size                = optional(number)
    max_batch_items           = optional(number)
    shards                    = optional(number)
    lanes                     = optional(number)
    writer_timeout            = optional(number)
    max_clock_skew            = optional(number)
    acquire_timeout           = optional(number)
    acquire_attempts          = optional(number)
    max_pending_items         = optional(number)
    max_pending_bytes         = optional(number)
    enqueue_timeout           = optional(number)
    concurrency               = optional(number)
    max_attempts              = optional(number)
    crash_limit               = optional(number)
    retry_min_backoff         = optional(number)
    retry_max_backoff         = optional(number)
    dispatch_deadline         = optional(number)
    on_success                = optional(string)
    expire_after              = optional(number)
    sweep_after               = optional(number)
    max_dispatches_per_second = optional(number, 500)
    max_concurrent_dispatches = optional(number)
    paused                    = optional(bool, false)
  }))
  nullable = false

  validation {
    condition     = length(var.queues) > 0
    error_message = "queues is empty: name at least one queue."
  }

  validation {
    condition = alltrue([for name in keys(var.queues) : can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", name))])
    error_message = join(" ", [
      for name in keys(var.queues) :
      "queues.${name}: a queue's name must be 1 to 63 lower-case letters, digits and hyphens, starting with a letter and not ending in a hyphen."
      if !can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", name))
    ])
  }

  validation {
    condition = alltrue(flatten([
      for queue in var.queues : [
        for setting, range in local.ranges :
        queue[setting] == null ? true : queue[setting] >= range.min && queue[setting] <= range.max
      ]
    ]))
    error_message = join(" ", flatten([
      for name, queue in var.queues : [
        for setting, range in local.ranges :
        "queues.${name}.${setting} = ${queue[setting]}: must be from ${range.min} to ${range.max} (${range.unit})."
        if queue[setting] == null ? false : queue[setting] < range.min || queue[setting] > range.max
      ]
    ]))
  }

  validation {
    condition = alltrue(flatten([
      for queue in var.queues : [
        for setting, range in local.ranges :
        range.unit == "s" || queue[setting] == null ? true : floor(queue[setting]) == queue[setting]
      ]
    ]))
    error_message = join(" ", flatten([
      for name, queue in var.queues : [
        for setting, range in local.ranges :
        "queues.${name}.${setting} = ${queue[setting]}: must be a whole number (${range.unit})."
        if range.unit == "s" || queue[setting] == null ? false : floor(queue[setting]) != queue[setting]
      ]
    ]))
  }

  validation {
    condition = alltrue(flatten([
      for queue in var.queues : [
        for setting, choices in local.choices :
        queue[setting] == null ? true : contains(choices, queue[setting])
      ]
    ]))
    error_message = join(" ", flatten([
      for name, queue in var.queues : [
        for setting, choices in local.choices :
        "queues.${name}.${setting} = ${jsonencode(queue[setting])}: must be ${join(" or ", choices)}."
        if queue[setting] == null ? false : !contains(choices, queue[setting])
      ]
    ]))
  }

  validation {
    condition = alltrue(flatten([
      for queue in var.queues : [
        for low, high in local.ordered :
        coalesce(queue[low], local.queue_settings[low].default) <= coalesce(queue[high], local.queue_settings[high].default)
      ]
    ]))
    error_message = join(" ", flatten([
      for name, queue in var.queues : [
        for low, high in local.ordered :
        "queues.${name}: ${low} = ${coalesce(queue[low], local.queue_settings[low].default)} is more than ${high} = ${coalesce(queue[high], local.queue_settings[high].default)}."
        if coalesce(queue[low], local.queue_settings[low].default) > coalesce(queue[high], local.queue_settings[high].default)
      ]
    ]))
  }

  validation {
    condition = alltrue([
      for queue in var.queues :
      queue.version == null ? true : can(regex("^[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?$", queue.version))
    ])
    error_message = join(" ", [
      for name, queue in var.queues :
      "queues.${name}.version = ${jsonencode(queue.version)}: must be 1 to 31 lower-case letters, digits and hyphens, not starting or ending with a hyphen."
      if queue.version == null ? false : !can(regex("^[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?$", queue.version))
    ])
  }

  validation {
    condition = alltrue([
      for queue in var.queues : queue.max_dispatches_per_second > 0 && queue.max_dispatches_per_second <= 500
    ])
    error_message = join(" ", [
      for name, queue in var.queues :
      "queues.${name}.max_dispatches_per_second = ${queue.max_dispatches_per_second}: must be more than 0 and at most 500 (Cloud Tasks' limit of a queue; use shards for more)."
      if queue.max_dispatches_per_second <= 0 || queue.max_dispatches_per_second > 500
    ])
  }

  validation {
    condition = alltrue([
      for queue in var.queues :
      queue.max_concurrent_dispatches == null ? true : queue.max_concurrent_dispatches >= 1 && queue.max_concurrent_dispatches <= 5000
    ])
    error_message = join(" ", [
      for name, queue in var.queues :
      "queues.${name}.max_concurrent_dispatches = ${queue.max_concurrent_dispatches}: must be from 1 to 5000 (Cloud Tasks' limit of a queue)."
      if queue.max_concurrent_dispatches == null ? false : queue.max_concurrent_dispatches < 1 || queue.max_concurrent_dispatches > 5000
    ])
  }
}

variable "join" {
  description = "The join function. `source_directory` holds the modules that declare the queues and their handlers, with a `requirements.txt` of what they need; `queue` is where they are, as `FORKJOIN_QUEUE`. `archive` is a zip file of your own instead, with `main.py` in it. `request_concurrency` is how many requests, each with its batch of items, an instance takes at once."
  type = object({
    queue               = string
    source_directory    = optional(string)
    archive             = optional(string)
    package             = optional(string)
    runtime             = optional(string, "python312")
    memory              = optional(string, "1Gi")
    cpu                 = optional(number, 1)
    request_concurrency = optional(number, 10)
    min_instances       = optional(number, 0)
    max_instances       = optional(number, 100)
    environment         = optional(map(string), {})
  })
  nullable = false

  validation {
    condition     = can(regex("^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*(\\s*,\\s*[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*)*$", var.join.queue))
    error_message = "join.queue = ${jsonencode(var.join.queue)}: must be module:attribute, as feeds:feeds, or several of these with commas."
  }

  validation {
    condition     = (var.join.source_directory == null) != (var.join.archive == null)
    error_message = "join: give either source_directory or archive."
  }

  validation {
    condition     = var.join.source_directory == null ? true : length(fileset(var.join.source_directory, "*.py")) > 0
    error_message = "join.source_directory = ${jsonencode(var.join.source_directory)}: there is no Python module in it."
  }

  validation {
    condition     = var.join.request_concurrency >= 1 && var.join.request_concurrency <= 1000 && floor(var.join.request_concurrency) == var.join.request_concurrency
    error_message = "join.request_concurrency = ${var.join.request_concurrency}: must be a whole number (requests), from 1 to 1000."
  }

  validation {
    # Cloud Run: several requests at once need a whole CPU.
    condition     = var.join.cpu >= 1 && var.join.cpu <= 8 || (var.join.cpu > 0 && var.join.cpu < 1 && var.join.request_concurrency == 1)
    error_message = "join.cpu = ${var.join.cpu}: must be from 1 to 8; less only with request_concurrency = 1."
  }

  validation {
    condition     = var.join.min_instances >= 0 && var.join.max_instances >= 1 && var.join.min_instances <= var.join.max_instances
    error_message = "join.min_instances = ${var.join.min_instances}, join.max_instances = ${var.join.max_instances}: must be at least 0 and 1, and the first not more than the second."
  }

  validation {
    condition     = alltrue([for name in keys(var.join.environment) : !startswith(name, "FORKJOIN_")])
    error_message = "join.environment: FORKJOIN_ variables are set by this module: ${join(", ", [for name in keys(var.join.environment) : name if startswith(name, "FORKJOIN_")])}."
  }
}

variable "sweep" {
  description = "The sweeper: when Cloud Scheduler calls it (`schedule`, in cron's form, UTC), and `paused`."
  type = object({
    schedule    = optional(string, "*/10 * * * *")
    paused      = optional(bool, false)
    memory      = optional(string, "512Mi")
    environment = optional(map(string), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = length(split(" ", var.sweep.schedule)) == 5
    error_message = "sweep.schedule = ${jsonencode(var.sweep.schedule)}: must have five fields, as \"*/10 * * * *\"."
  }
}

variable "network" {
  description = "A network of your own and a subnetwork in `location`, for the functions' egress and Memorystore's endpoint: ids or names. `create_connection_policy` is `false` where the network has a service connection policy for `gcp-memorystore` already. Without it a network is made."
  type = object({
    network                  = string
    subnetwork               = string
    create_connection_policy = optional(bool, true)
  })
  default = null
}

variable "subnetwork_range" {
  description = "The addresses of the subnetwork that is made where `network` is not given. Cloud Run takes up to two for each instance."
  type        = string
  default     = "10.80.0.0/22"
  nullable    = false

  validation {
    condition     = try(tonumber(split("/", var.subnetwork_range)[1]) <= 26 && cidrhost(var.subnetwork_range, 0) != "", false)
    error_message = "subnetwork_range = ${jsonencode(var.subnetwork_range)}: must be a range as 10.80.0.0/22, of /26 or larger."
  }
}

variable "database" {
  description = "The Firestore database: its `id`, whether to `create` it, and where (`location`, as `nam5`; by default `location` of everything)."
  type = object({
    id                     = optional(string, "forkjoin")
    create                 = optional(bool, true)
    location               = optional(string)
    point_in_time_recovery = optional(bool, true)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.database.id == "(default)" || can(regex("^[a-z][a-z0-9-]{2,61}[a-z0-9]$", var.database.id))
    error_message = "database.id = ${jsonencode(var.database.id)}: must be (default), or 4 to 63 lower-case letters, digits and hyphens, starting with a letter and not ending in a hyphen."
  }
}

variable "memorystore" {
  description = "Memorystore for Valkey: the one that is made, or an `existing` one by its name, `projects/P/locations/L/instances/I`, which must want IAM tokens. `cluster` is cluster mode; without it there is one shard. `persistence` is `AOF`, `RDB` or `DISABLED`."
  type = object({
    existing       = optional(string)
    cluster        = optional(bool, false)
    shards         = optional(number, 1)
    replicas       = optional(number, 1)
    node_type      = optional(string, "STANDARD_SMALL")
    engine_version = optional(string, "VALKEY_8_0")
    engine_configs = optional(map(string), {})
    persistence    = optional(string, "AOF")
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.memorystore.existing == null ? true : can(regex("^projects/[^/]+/locations/[^/]+/instances/[^/]+$", var.memorystore.existing))
    error_message = "memorystore.existing = ${jsonencode(var.memorystore.existing)}: must be projects/PROJECT/locations/LOCATION/instances/INSTANCE."
  }

  validation {
    condition     = var.memorystore.cluster || var.memorystore.shards == 1
    error_message = "memorystore.shards = ${var.memorystore.shards}: must be 1 unless memorystore.cluster is true."
  }

  validation {
    condition     = contains(["AOF", "RDB", "DISABLED"], var.memorystore.persistence)
    error_message = "memorystore.persistence = ${jsonencode(var.memorystore.persistence)}: must be AOF, RDB or DISABLED."
  }
}

variable "enqueuers" {
  description = "E-mail addresses of service accounts that may enqueue, besides the one that is made for it."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for account in var.enqueuers : can(regex("^[^@:\\s]+@[^@:\\s]+$", account))])
    error_message = "enqueuers: must be e-mail addresses, without serviceAccount: before them: ${join(", ", [for account in var.enqueuers : account if !can(regex("^[^@:\\s]+@[^@:\\s]+$", account))])}."
  }
}

variable "task_log_sampling" {
  description = "The share of Cloud Tasks' operations that are logged, from 0 to 1. They are charged."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.task_log_sampling >= 0 && var.task_log_sampling <= 1
    error_message = "task_log_sampling = ${var.task_log_sampling}: must be from 0 to 1."
  }
}

variable "alarms" {
  description = "When to raise the alarm, and whom to tell (`notification_channels`, by name): `task_delay` (s by which tasks are dispatched late), `dead_letters` and `late_releases` (more than so many in ten minutes), `memory` (the share of Memorystore's that is in use), `sweep_silence` (s without a sweep; more than what is between two by `sweep.schedule`)."
  type = object({
    notification_channels = optional(list(string), [])
    task_delay            = optional(number, 120)
    dead_letters          = optional(number, 0)
    late_releases         = optional(number, 10)
    memory                = optional(number, 0.8)
    sweep_silence         = optional(number, 3600)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.alarms.task_delay > 0
    error_message = "alarms.task_delay = ${var.alarms.task_delay}: must be more than 0 (s)."
  }

  validation {
    condition     = var.alarms.dead_letters >= 0 && var.alarms.late_releases >= 0
    error_message = "alarms.dead_letters = ${var.alarms.dead_letters}, alarms.late_releases = ${var.alarms.late_releases}: must not be less than 0."
  }

  validation {
    condition     = var.alarms.memory > 0 && var.alarms.memory < 1
    error_message = "alarms.memory = ${var.alarms.memory}: must be between 0 and 1."
  }

  validation {
    condition     = var.alarms.sweep_silence >= 120 && var.alarms.sweep_silence <= 86400 && floor(var.alarms.sweep_silence) == var.alarms.sweep_silence
    error_message = "alarms.sweep_silence = ${var.alarms.sweep_silence}: must be a whole number of seconds, from 120 to 86400."
  }
}
