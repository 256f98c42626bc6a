"""The fields of a configuration for use of a trained network: sampling, likelihood, evaluation.

`default.py` has the others and calls `add_fields`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def add_fields(config: ConfigDict) -> None:
    config.sampling = sampling = ConfigDict()
    # Fixed steps: pc (Predictor-Corrector), ddim, consistency, dpm_solver, unipc, deis, heun,
    # analytic, langevin, mala, bridge. Adaptive: ode (probability flow), sde (reverse SDE),
    # dpm_adaptive.
    sampling.name = "pc"
    sampling.seed = 0
    sampling.label = -1  # class of the samples; -1 cycles through all, num_classes is no class
    sampling.labels = placeholder(tuple)  # classes of the samples in turn, instead of label
    sampling.clip = placeholder(str)  # clipping of the predicted x0: none, range, dynamic
    sampling.quantile = placeholder(float)  # dynamic clipping
    sampling.t_min = 1e-3  # where sampling stops
    # what is returned at t_min: denoise (one more evaluation), none (the noisy state); with fixed
    # steps also mean (the state without the last step's fresh noise, which leaves most of the rest)
    sampling.final_step = placeholder(str)
    # Fixed steps:
    sampling.steps = placeholder(int)
    # uniform, quadratic, log_snr, karras, polyexponential, vp_time, iddpm; for a chain also
    # timesteps, ddim50, or 10,15,20
    sampling.grid = placeholder(str)
    sampling.rho = placeholder(float)  # karras, polyexponential
    sampling.times = placeholder(tuple)  # from 1 down, instead of a grid
    # pc:
    # euler_maruyama, reverse_diffusion, probability_flow, ancestral, none
    sampling.predictor = "euler_maruyama"
    sampling.corrector = "none"  # langevin, annealed_langevin, mala, none
    sampling.corrector_first = placeholder(bool)
    # exact transitions; or published, the tables and times of Song et al.'s code
    sampling.discretization = placeholder(str)
    sampling.churn = placeholder(float)  # euler_maruyama, sde: 1 is the reverse SDE, 0 the ODE
    # ancestral: small, large, learned, analytic, diagonal; analytic: the last two; bridge: the
    # first two
    sampling.variance = placeholder(str)
    sampling.guidance_form = placeholder(str)  # ancestral: score, mean
    sampling.snr = placeholder(float)  # correctors: signal-to-noise ratio
    sampling.corrector_steps = placeholder(int)  # correctors: Langevin steps at each time
    sampling.norm_reduction = placeholder(str)  # langevin: per_sample, batch
    # ddim, dpm_solver, analytic:
    sampling.eta = placeholder(float)  # fresh noise, 0 (DDIM) to 1 (ancestral)
    sampling.s_noise = placeholder(float)  # ddim, dpm_solver: scale of the fresh noise
    # dpm_solver, unipc, deis, dpm_adaptive:
    sampling.order = placeholder(int)
    sampling.prediction = placeholder(str)  # x0 (DPM-Solver++), eps
    sampling.method = placeholder(str)  # dpm_solver: multistep, singlestep
    # dpm_solver, singlestep: grid, by_order, log_snr
    sampling.step_ends = placeholder(str)
    sampling.noise_form = placeholder(str)  # dpm_solver: sde, ancestral, ancestral_stages
    sampling.variant = placeholder(str)  # unipc: bh2, bh1
    sampling.lower_order_final = placeholder(bool)  # dpm_solver, unipc
    # heun (also order, 1 or 2):
    sampling.stage = placeholder(float)  # 1 Heun, 0.5 midpoint, 2/3 Ralston
    sampling.variable = placeholder(str)  # in which steps are straight: sigma, sigma2, vp_time
    sampling.scaling = placeholder(str)  # of the state in which steps are straight: none, vp
    sampling.final_euler = placeholder(bool)  # end with an Euler step to noise 0
    sampling.s_churn = placeholder(float)  # total fresh noise, S_churn of EDM
    # noise levels sigma / alpha between which noise is added
    sampling.churn_min = placeholder(float)
    sampling.churn_max = placeholder(float)
    sampling.churn_noise = placeholder(float)  # scale of the fresh noise
    sampling.churn_all_levels = placeholder(bool)  # also at the first and last, as published
    # analytic:
    sampling.timestep_choice = placeholder(str)  # grid, optimal
    sampling.clip_last_std = placeholder(float)  # bound on the noise of the last step
    sampling.clip_x0_range = placeholder(float)  # half the width of the data's range
    # langevin, mala:
    sampling.step_size = placeholder(float)  # in units of sigma^2
    # ode, sde, dpm_adaptive:
    sampling.solver = placeholder(str)  # ode: dopri5, adams, ...; sde: sra1, euler, ...
    sampling.ode_variable = placeholder(str)  # ode: t, log_snr, angle, sqrt_angle
    sampling.step_size_control = placeholder(str)  # ode: step sizes per_sample, batch
    sampling.rtol = placeholder(float)
    sampling.atol = placeholder(float)
    sampling.max_steps = placeholder(int)
    sampling.first_step = placeholder(float)  # dpm_adaptive: length in log(alpha / sigma)
    sampling.safety = placeholder(float)  # dpm_adaptive
    # dpm_adaptive: largest ratio of a step to the one before
    sampling.max_growth = placeholder(float)

    # Guidance of samples: toward their classes, away from a bad model, or toward texts.
    config.guidance = guidance = ConfigDict()
    guidance.name = "none"  # none, classifier, classifier_free, autoguidance, text
    guidance.scale = placeholder(float)  # 1 samples the class; more trades diversity for accuracy
    # classifier_free, autoguidance, text: the times between which they act
    guidance.interval = placeholder(tuple)
    # classifier_free: 1 for the spread of class-conditional images, 0 for that of guided ones
    guidance.rescale = placeholder(float)
    # autoguidance: the bad model, RUN or RUN:STEP of another run, or :STEP of this one
    guidance.run = placeholder(str)
    # text: prompts with weights, "a cat:1 | dog:-0.5"
    guidance.prompt = placeholder(str)
    guidance.image_prompt = placeholder(str)  # text: image files with weights, likewise
    # text: the folder of a CLIP, or hf:NAME; by default that of --mode=train_perceptor
    guidance.perceptor = placeholder(str)
    guidance.cutouts = placeholder(int)  # text: random cutouts of an image; 0 for the whole image
    guidance.cutout_min = placeholder(float)  # text: the smallest one's height over the image's
    guidance.cutout_power = placeholder(float)  # text: above 1, more small cutouts
    # text: whether the gradient goes through the network, or stops at the predicted image
    guidance.through_network = placeholder(bool)
    guidance.range_scale = placeholder(float)  # text: factor of the loss outside the data's range
    guidance.variation_scale = placeholder(float)  # text: factor of the total variation

    # What --mode=sample does with input images.
    config.task = task = ConfigDict()
    # generate (plain samples, no input); inverse problems: inpaint, colorize, super_resolve,
    # deblur, compressed_sensing, mri; editing: sdedit; latents: reconstruct, interpolate;
    # upsample: the small images of an upsampler; between data sets: translate
    task.name = "generate"
    # files, separated by commas (\, for a comma in a name); or test, test:3, test:0-7
    task.input = placeholder(str)
    # inpaint: a file, 1 or white where known; or left, right, top, bottom, border, random
    task.mask = placeholder(str)
    task.factor = placeholder(int)  # super_resolve: pixels per pixel, along each side
    task.blur_std = placeholder(float)  # deblur: pixels
    task.fraction = placeholder(float)  # compressed_sensing: measurements per number in x
    task.acceleration = placeholder(float)  # mri: columns per measured column
    task.measurement_seed = placeholder(int)  # compressed_sensing, mri
    task.direction = placeholder(str)  # translate: to_data (from x1 to x0), from_data
    task.start = placeholder(float)  # sdedit: the time below 1 up to which noise is added
    # inverse problems:
    task.input_is_measurement = placeholder(bool)  # otherwise an image, which is measured
    task.method = placeholder(str)  # pigdm, dps, projection
    task.noise = placeholder(float)  # std of the measurement's noise, for images in [0, 1]
    task.strength = placeholder(float)  # projection: above 0, at most 1
    task.data_std = placeholder(float)  # pigdm: spread of the data, in the network's range
    task.guidance_scale = placeholder(float)  # pigdm, dps

    config.likelihood = likelihood = ConfigDict()
    likelihood.trace = "rademacher"  # rademacher, gaussian, exact
    likelihood.probes = 1
    likelihood.t_min = 1e-5
    # adams, dopri5, tsit5, dopri8, bosh3, heun, midpoint, ralston
    likelihood.solver = "adams"
    likelihood.rtol = 1e-5
    likelihood.atol = 1e-5
    likelihood.max_steps = 4096
    likelihood.ode_variable = "sqrt_angle"  # t, log_snr, angle, sqrt_angle
    likelihood.step_size_control = "per_sample"  # per_sample, batch (as published)

    # The continuous-time bound on the likelihood, with dequantized images.
    config.continuous_bound = continuous_bound = ConfigDict()
    continuous_bound.num_times = 32  # times per image and dequantization
    continuous_bound.importance = "log_snr"  # density of the times: log_snr, uniform
    continuous_bound.t_min = 1e-5

    # The variational bound of a chain, or of any process on a grid; images are not dequantized.
    config.discrete_bound = discrete_bound = ConfigDict()
    # small, large, learned; the optimal ones: analytic (after --mode=moments), diagonal (after
    # --mode=train_variance)
    discrete_bound.variance = "small"
    discrete_bound.timestep_choice = "grid"  # grid, optimal (after --mode=moments)
    discrete_bound.decoder = "chain"  # variance of L_0: chain (as published), tweedie
    discrete_bound.grid = placeholder(str)  # as sampling.grid; by default timesteps or log_snr
    discrete_bound.steps = placeholder(int)
    discrete_bound.rho = placeholder(float)
    discrete_bound.times = placeholder(tuple)
    discrete_bound.t_min = 1e-5
    discrete_bound.clip = placeholder(str)  # clipping of x0: none, range, dynamic
    discrete_bound.quantile = placeholder(float)

    # --mode=moments, for sampling.name=analytic and for variance=analytic.
    config.analytic_dpm = analytic_dpm = ConfigDict()
    analytic_dpm.num_images = 1000  # training images
    analytic_dpm.num_times = 100  # noise levels; a chain is measured at all of its timesteps

    # --mode=train_classifier, --mode=import_classifier: a noise-conditional classifier, for
    # features and guidance.
    config.classifier = classifier = ConfigDict()
    classifier.name = "adm_classifier"  # a network of models.CLASSIFIERS
    classifier.features = 32
    classifier.channel_multipliers = (1, 2)
    classifier.blocks_per_resolution = 1
    classifier.attention_resolutions = ()
    classifier.dropout = 0.0
    classifier.depth = placeholder(int)  # mlp_classifier
    classifier.heads = placeholder(int)
    classifier.head_width = 16
    classifier.scale_shift = placeholder(bool)
    classifier.resample = placeholder(str)
    classifier.num_groups = placeholder(int)  # adm_classifier: as model.num_groups
    classifier.compute_dtype = placeholder(str)
    classifier.remat = placeholder(bool)
    classifier.pool = "attention"  # attention, adaptive, spatial, spatial_v2
    classifier.num_classes = 10
    classifier.blocks_per_group = placeholder(int)  # wide_resnet
    classifier.channel_multiplier = placeholder(int)  # wide_resnet
    classifier.fourier_scale = placeholder(float)  # wide_resnet
    classifier.channel_means = placeholder(tuple)  # wide_resnet: subtracted from each channel
    classifier.channel_stds = placeholder(tuple)  # wide_resnet: then divides it
    classifier.conditioning = "timestep_999"  # as denoiser.conditioning
    classifier.num_timesteps = placeholder(int)
    classifier.scale_input = True  # divide x_t by sqrt(alpha^2 + sigma^2)
    classifier.t_min = 1e-5  # the time of clean images, at which features are taken
    classifier.clean_fraction = 0.5  # fraction of clean images in training
    classifier.lr = 2e-3
    classifier.warmup = 100  # steps
    classifier.batch_size = 64
    classifier.steps = 600

    # --mode=train_perceptor: a small CLIP of the images and the words for their classes, for
    # guidance.name=text.
    config.perceptor = perceptor = ConfigDict()
    # words of each class, alternatives as seven|7; by default the names of the data's classes, or
    # the numbers from zero on
    perceptor.class_names = placeholder(tuple)
    perceptor.captions = ("{}", "a {}", "the {}", "the digit {}", "a picture of a {}")
    perceptor.features = 64  # numbers of a token
    perceptor.depth = 2  # blocks of the tower for images, and of that for texts
    perceptor.heads = 4
    perceptor.patch_size = 2  # pixels
    perceptor.embedding = 32  # length of the vectors
    perceptor.context_length = 16  # tokens of a text
    perceptor.cutout_min = 0.75  # smallest cutout in training, as guidance.cutout_min
    perceptor.noise = 0.5  # largest standard deviation of noise, for images in [0, 1]
    perceptor.lr = 1e-3
    perceptor.warmup = 100  # steps
    perceptor.batch_size = 64
    perceptor.steps = 1200

    # --mode=train_dequantizer: noise for bits/dim with data.dequantization=variational.
    config.dequantizer = dequantizer = ConfigDict()
    dequantizer.features = 32  # channels of the couplings' networks
    dequantizer.couplings = 4  # each changes the pixels of one color of a checkerboard
    dequantizer.t_min = 1e-5  # the smallest time of the bound that it is trained by
    dequantizer.lr = 1e-3
    dequantizer.warmup = 50  # steps
    dequantizer.batch_size = 64
    dequantizer.steps = 1000

    # --mode=train_variance: a network for variance=diagonal of samplers and of the discrete bound.
    config.variance_head = head = ConfigDict()
    # what it predicts: residual (NPR), the squared error of the predicted noise; squared_noise (SN)
    head.target = "residual"
    head.features = placeholder(int)  # width of its network; by default as the model's
    head.t_min = 1e-5  # the smallest time in its training
    head.lr = 1e-3
    head.warmup = 50  # steps
    head.batch_size = 64
    head.steps = 1000

    config.eval = evaluation = ConfigDict()
    evaluation.checkpoints = ()  # steps; empty for the latest
    # loss, bits_per_dim, continuous_bound, discrete_bound, rate_distortion; of samples: frechet,
    # kid, precision_recall, inception_score; of points and series nats_per_dim,
    # sliced_wasserstein, mmd; of energies log_density.
    # By default loss, the likelihood in the unit of the data, and distances
    evaluation.metrics = placeholder(tuple)
    evaluation.batch_size = 128  # images, over all devices
    evaluation.seed = 0  # for noise, probes, dequantization
    evaluation.loss_repeats = 10  # times and noises per test image
    evaluation.dequantizations = 5  # draws per test image
    evaluation.error_budget_images = 32  # for solver error and truncation
    evaluation.samples = 1500  # images per sampling seed
    evaluation.sampling_seeds = 1  # number of seeds, from sampling.seed on
    # some of pixels, thumbnails, inception, classifier, raw; by default pixels, of points and
    # series raw
    evaluation.features = placeholder(tuple)
    evaluation.reference = ""  # file of statistics; empty for those of the data
    evaluation.inception_weights = ""  # file; empty for the one in the user's cache
    evaluation.inception_resize = "tf1"  # tf1 (original FID, EDM), pytorch (pytorch-fid)
