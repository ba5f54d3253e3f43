# A NixOS machine that fills the cache: after each new system generation, daily to renew leases,
# and, where asked, after each build.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nix-binary-cache.builder;
  cache = lib.importJSON cfg.configurationFile;
  builder = cache.builders.${cfg.name};

  # Where the stack has no such builder, an assertion is to say so.
  pins = cache.builders.${cfg.name}.pins or [ ];
  pushed = lib.toList (cfg.settings.path or (cfg.paths ++ pins));
  # A push of nothing fails, and systemd would try it again for ever.
  pushes = pushed != [ ];

  user = "nix-binary-cache";
  # Where the package's post-build hook leaves links. Below gcroots, they keep what they point to
  # from the garbage collector while it waits.
  queue = "/nix/var/nix/gcroots/nix-binary-cache";
  # What says that there is a generation that no push has begun with. A path unit alone would not do:
  # what changes while its service runs starts nothing, but what exists when it ends does.
  newGeneration = "/var/cache/nix-binary-cache/new-generation";

  # Complete by itself: a relative path lies where systemd puts what `LoadCredential` names.
  settingsFile =
    paths:
    pkgs.writeText "nix-binary-cache-push.conf" (
      lib.generators.toKeyValue { listsAsDuplicateKeys = true; } (
        cache.push
        // {
          access-key-id = builder.accessKeyId;
          secret-access-key-file = "secret-access-key";
          signing-key-file = "signing-key";
          path = paths;
        }
        // lib.optionalAttrs (cache.caCertificate != null) {
          ca-certificate-file = pkgs.writeText "nix-binary-cache-ca.pem" cache.caCertificate;
        }
        // cfg.settings
      )
    );

  push = paths: "${cfg.package}/bin/nix-binary-cache-push --config ${settingsFile paths}";

  # What `ProtectHome` and `PrivateTmp` hide.
  hidden = [
    "/home"
    "/root"
    "/run/user"
    "/tmp"
    "/var/tmp"
  ];
  seen =
    remedy: said: value:
    let
      path = toString value;
    in
    {
      assertion = !builtins.any (directory: lib.hasPrefix "${directory}/" "${path}/") hidden;
      message =
        "${said} \"${path}\", and the units see nothing in ${lib.concatStringsSep ", " hidden}; "
        + "${remedy}.";
    };
  outsideStore = name: value: {
    assertion = !lib.hasPrefix builtins.storeDir (toString value);
    message =
      "services.nix-binary-cache.builder.${name} is in the Nix store, which everyone can read; "
      + "name a file outside it, as a text.";
  };
  linkSeen = seen "name a link below /nix/var/nix/gcroots or /nix/var/nix/profiles";

  sandbox = {
    CapabilityBoundingSet = "";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
    ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [ "@system-service" ];
    UMask = "0077";
  };

  service = {
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    # A switch that changes the unit must not kill a push.
    restartIfChanged = false;
    # The server may be away for long, and a path unit gives up when its service has failed often.
    startLimitIntervalSec = 0;
    inherit (cfg) onFailure;
    environment = {
      HOME = "%C/nix-binary-cache";
      NIX_REMOTE = "daemon";
      XDG_RUNTIME_DIR = "%t/%N";
    };
    serviceConfig = {
      Type = "oneshot";
      User = user;
      # While it waits to be started again, its path unit starts nothing: no entry of the queue that
      # cannot be pushed keeps it busy, and none holds up a new one for longer than this.
      Restart = "on-failure";
      RestartSec = "1min";
      RestartSteps = 4;
      RestartMaxDelaySec = "15min";
      LoadCredential = [
        "secret-access-key:${cfg.secretAccessKeyFile}"
        "signing-key:${cfg.signingKeyFile}"
      ];
      CacheDirectory = "nix-binary-cache";
      CacheDirectoryMode = "0700";
      RuntimeDirectory = "%N";
      RuntimeDirectoryMode = "0700";
      Nice = 10;
      IOSchedulingClass = "idle";
    }
    // sandbox;
  };
in
{
  options.services.nix-binary-cache.builder = {
    enable = lib.mkEnableOption "pushes of this machine's closures to the binary cache";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./push.nix { nix = config.nix.package; };
      defaultText = lib.literalExpression "pkgs.callPackage ./push.nix { nix = config.nix.package; }";
      description = "The nix-binary-cache-push package to use.";
    };

    configurationFile = lib.mkOption {
      type = lib.types.path;
      example = lib.literalExpression "./cache.json";
      description = "What `pulumi stack output nixos --json` printed. It holds no secret.";
    };

    name = lib.mkOption {
      type = lib.types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "This machine's name among the stack's `builders`.";
    };

    paths = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [
        "/run/current-system"
        "/nix/var/nix/profiles/system"
      ];
      description = ''
        Store paths, or links to them, whose closures are pushed and kept alive, beside the stack's
        `pins` for this builder. The units see nothing in /home, /root, /run/user, /tmp and
        /var/tmp. With neither paths nor pins, what `postBuildHook` queues is all that is pushed.
      '';
    };

    secretAccessKeyFile = lib.mkOption {
      type = lib.types.str;
      default = "/var/lib/nix-binary-cache/secret-access-key";
      description = ''
        File with the S3 user's secret, readable by root alone. The default is where the stack
        puts it when the builder's `credentialsDirectory` is set to `/var/lib/nix-binary-cache`.
      '';
    };

    signingKeyFile = lib.mkOption {
      type = lib.types.str;
      default = "/var/lib/nix-binary-cache/signing-key";
      description = "File with the secret signing key, readable by root alone; beside the secret.";
    };

    onNewGeneration = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = "Push when `nixos-rebuild switch` or `boot` makes a generation of the system.";
    };

    schedule = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = "daily";
      description = ''
        When to push again, in systemd's calendar format, so that entries in use do not expire.
        Null never does.
      '';
    };

    onFailure = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "alert@%n.service" ];
      description = ''
        Units that systemd starts whenever a push has failed (`OnFailure=`): when it did not push or
        renew everything that it should have. It is tried again after a minute at first, and after a
        quarter of an hour at last; each attempt that fails starts them.
      '';
    };

    postBuildHook = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Push whatever this machine builds. Builds only leave a link in a queue, which a service
        empties; they wait for no upload and fail for none.
      '';
    };

    settings = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.oneOf [
          lib.types.str
          lib.types.int
          (lib.types.listOf lib.types.str)
        ]
      );
      default = { };
      example = {
        parallelism = 2;
      };
      description = ''
        Settings of the push that differ from the stack's; docs/push.md lists them, as does
        `nix-binary-cache-push --help`.
      '';
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        assertions = [
          {
            assertion = cache.builders ? ${cfg.name};
            message =
              "services.nix-binary-cache.builder.name is \"${cfg.name}\": the stack has no builder of "
              + "that name; write one of ${lib.concatStringsSep ", " (builtins.attrNames cache.builders)}.";
          }
        ]
        ++ [
          {
            assertion = cfg.postBuildHook -> config.nix.enable or true;
            message =
              "services.nix-binary-cache.builder.postBuildHook is true, but nix.enable is false, so that "
              + "no setting reaches Nix; leave the hook out, and name in paths what is to be pushed.";
          }
        ]
        ++ map (name: outsideStore name cfg.${name}) [
          "secretAccessKeyFile"
          "signingKeyFile"
        ]
        ++ builtins.concatMap
          (name: map (outsideStore "settings.${name}") (lib.toList (cfg.settings.${name} or [ ])))
          [
            "secret-access-key-file"
            "session-token-file"
            "signing-key-file"
          ]
        ++ map
          (name: {
            assertion = !cfg.settings ? ${name};
            message =
              "services.nix-binary-cache.builder.settings.${name} would be in the Nix store, which "
              + "everyone can read; name a file: ${name}-file, secretAccessKeyFile or signingKeyFile.";
          })
          [
            "secret-access-key"
            "session-token"
            "signing-key"
          ]
        ++ map (linkSeen "services.nix-binary-cache.builder.paths has") cfg.paths
        ++ map (linkSeen "services.nix-binary-cache.builder.settings.path has") (
          lib.toList (cfg.settings.path or [ ])
        )
        ++ map (linkSeen "The pins that the stack has for ${cfg.name} have") pins
        ++ builtins.concatMap
          (
            name:
            map (seen "name a file elsewhere" "services.nix-binary-cache.builder.settings.${name} is") (
              lib.toList (cfg.settings.${name} or [ ])
            )
          )
          [
            "ca-certificate-file"
            "secret-access-key-file"
            "session-token-file"
            "signing-key-file"
          ];

        environment.systemPackages = [ cfg.package ];

        users.users.${user} = {
          isSystemUser = true;
          group = user;
          description = "Pushes to the binary cache";
        };
        users.groups.${user} = { };
      }

      (lib.mkIf pushes {
        systemd.services.nix-binary-cache-push = lib.mkMerge [
          service
          {
            description = "Push this machine's closures to the binary cache";
            serviceConfig.ExecStart = push pushed;
          }
        ];
      })

      (lib.mkIf (pushes && cfg.onNewGeneration) {
        systemd.paths.nix-binary-cache-new-generation = {
          description = "Notice each new generation of the system";
          wantedBy = [ "paths.target" ];
          # The directory, not the link in it: a watched link is what it points to, which never
          # changes.
          pathConfig.PathChanged = "/nix/var/nix/profiles";
        };

        systemd.services.nix-binary-cache-new-generation = {
          description = "Ask for a push of the system's new generation";
          # However many generations come at once.
          startLimitIntervalSec = 0;
          serviceConfig = {
            Type = "oneshot";
            User = user;
            ExecStart = "${pkgs.coreutils}/bin/touch ${newGeneration}";
            CacheDirectory = "nix-binary-cache";
            CacheDirectoryMode = "0700";
          }
          // sandbox;
        };

        systemd.paths.nix-binary-cache-push = {
          description = "Push each new generation of the system to the binary cache";
          wantedBy = [ "paths.target" ];
          pathConfig.PathExists = newGeneration;
        };

        systemd.services.nix-binary-cache-push = {
          # Then what is new while it asks is there before links are followed.
          after = [ "nix-binary-cache-new-generation.service" ];
          serviceConfig.ExecStartPre = "${pkgs.coreutils}/bin/rm -f ${newGeneration}";
        };
      })

      (lib.mkIf (pushes && cfg.schedule != null) {
        systemd.timers.nix-binary-cache-push = {
          description = "Renew what this machine needs of the binary cache";
          wantedBy = [ "timers.target" ];
          timerConfig = {
            OnCalendar = cfg.schedule;
            Persistent = true;
            RandomizedDelaySec = "1h";
          };
        };
      })

      (lib.mkIf cfg.postBuildHook {
        nix.settings.post-build-hook = "${cfg.package}/bin/nix-binary-cache-post-build-hook";

        systemd.tmpfiles.rules = [ "d ${queue} 0755 ${user} ${user} -" ];

        systemd.paths.nix-binary-cache-push-queue = {
          description = "Push what this machine builds to the binary cache";
          wantedBy = [ "paths.target" ];
          pathConfig.DirectoryNotEmpty = queue;
        };

        systemd.services.nix-binary-cache-push-queue = lib.mkMerge [
          service
          {
            description = "Push what this machine built to the binary cache";
            serviceConfig = {
              ExecStart = "${push [ ]} --queue ${queue}";
              ReadWritePaths = [ queue ];
            };
          }
        ];
      })
    ]
  );
}
